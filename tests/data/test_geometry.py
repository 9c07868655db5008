"""Buckets and crops, over all shapes that hypothesis can think of."""

from hypothesis import given
from hypothesis import strategies as st

from flux2_train.geometry import at_most, bucket

side = st.integers(16, 8000)
resolution = st.sampled_from([64, 128, 256, 512, 768, 1024, 1536])


@given(side, side, resolution)
def test_bucket_is_aligned_and_never_larger_than_asked(width, height, resolution):
    w, h = bucket(width, height, resolution)
    assert w % 16 == h % 16 == 0
    assert w * h <= resolution**2
    assert w * h >= 0.7 * resolution**2 or max(width, height) > 1.9 * min(width, height)


@given(side, resolution)
def test_square_images_get_the_square_bucket(width, resolution):
    assert bucket(width, width, resolution) == (resolution, resolution)


@given(side, side, resolution)
def test_bucket_turns_with_the_image(width, height, resolution):
    w, h = bucket(width, height, resolution)
    assert bucket(height, width, resolution) == (h, w) or width == height


@given(side, side)
def test_references_only_shrink(width, height):
    w, h = at_most(width, height, 1024 * 1024)
    assert w % 16 == h % 16 == 0
    assert w <= width and h <= height
    assert w * h <= 1024 * 1024


def test_a_megapixel_reference_keeps_its_size():
    assert at_most(1024, 1024, 1024 * 1024) == (1024, 1024)
    assert at_most(2048, 2048, 1024 * 1024) == (1024, 1024)
