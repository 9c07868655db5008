"""Sizes and crops, each against what it should be computed by hand, and over all shapes hypothesis can think of."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import gradient, picture, read

from flux2_train.data import crops
from flux2_train.data.crops import Crop, shape_near
from flux2_train.data.render import cut
from flux2_train.errors import UserError
from flux2_train.geometry import bucket
from flux2_train.settings.base import choices
from flux2_train.settings.crops import CropSettings
from flux2_train.settings.text import ratios


def made(width, height, resolution=512, **options):
    return crops.crops(width, height, "digest", resolution, CropSettings(**options))


def one(width, height, resolution=512, **options) -> Crop:
    (crop,) = made(width, height, resolution, **options)
    return crop


@given(st.integers(16, 8000), st.integers(16, 8000))
def test_the_default_is_the_bucket_and_its_centre(width, height):
    crop = one(width, height)
    assert crop.size == bucket(width, height, 512)
    left, top, right, bottom = crop.box
    assert left + right == pytest.approx(width) and top + bottom == pytest.approx(height)  # the centre
    assert (right - left) * crop.size[1] == pytest.approx((bottom - top) * crop.size[0])  # the bucket's shape
    assert min(left, top) == pytest.approx(0, abs=1e-6)  # and no smaller than need be
    assert min(left, top) > -1e-6


def test_resolutions_each_or_the_nearest():
    assert [c.size for c in made(700, 700, resolutions=(512, 768, 1024))] == [(512, 512), (768, 768), (1024, 1024)]
    assert one(700, 700, resolutions=(512, 768, 1024), use="nearest").size == (768, 768)
    assert one(100, 100, resolutions=(512, 768), use="nearest").size == (512, 512)


@pytest.mark.parametrize("kind, resolution, image, size", [
    ("pixel_area", 1024, (2000, 2000), (1024, 1024)), ("area", 1.0, (2000, 2000), (1024, 1024)),
    ("area", 0.25, (2000, 2000), (512, 512)), ("area", 4.0, (3000, 3000), (2048, 2048)),
    ("pixel", 512, (1500, 1000), (768, 512)), ("pixel", 512, (1000, 1500), (512, 768)),
    ("pixel_area", 512, (1500, 1000), (624, 416)),
])  # fmt: skip
def test_resolution_types(kind, resolution, image, size):
    assert one(*image, resolutions=(resolution,), resolution_type=kind, crop_aspect="preserve").size == size


def test_aspects():
    assert one(900, 600, crop_aspect="square").size == (512, 512)
    assert one(900, 600, crop_aspect="preserve").size == (624, 416)
    assert one(800, 600, aspects=(1.0, 2.0)).size == shape_near(1.0, 512)
    assert one(900, 600, aspects=(1.0, 2.0)).size == shape_near(2.0, 512)  # 1.5 is nearer to 2 than to 1 as a ratio
    drawn = {
        crops.crops(900, 600, str(n), 512, CropSettings(crop_aspect="random", aspects=(1.0, 2.0)))[0].size
        for n in range(20)
    }
    assert drawn == {shape_near(1.0, 512), shape_near(2.0, 512)}


def test_crop_off_uses_the_whole_image():
    crop = one(1000, 600, crop=False)
    assert crop.box == (0, 0, 1000, 600)
    assert crop.size == (656, 400)  # 512 sqrt(5/3) = 661, 512 / sqrt(5/3) = 397


def test_styles():
    assert one(900, 600, crop_aspect="square").box == (150, 0, 750, 600)
    assert one(900, 600, crop_aspect="square", crop_style="corner").box == (0, 0, 600, 600)
    boxes = {
        crops.crops(900, 600, str(n), 512, CropSettings(crop_aspect="square", crop_style="random"))[0].box
        for n in range(9)
    }
    assert len(boxes) == 9
    options = CropSettings(crop_aspect="square", crop_style="random")
    assert crops.crops(900, 600, "x", 512, options) == crops.crops(900, 600, "x", 512, options)
    assert crops.crops(900, 600, "x", 512, options) != crops.crops(900, 600, "x", 512, replace(options, seed=1))


@pytest.mark.parametrize("face, left", [((450, 0), 150), ((100, 300), 0), ((899, 10), 300), (None, 150)])
def test_faces_are_centred_as_far_as_the_image_goes(face, left):
    (crop,) = crops.crops(900, 600, "x", 512, CropSettings(crop_aspect="square", crop_style="face"), face)
    assert crop.box == (left, 0, left + 600, 600)


def test_small_images_keep_their_size_if_wanted():
    assert one(300, 200).size == bucket(300, 200, 512)
    assert one(300, 200, upscale=False, crop_aspect="preserve").size == (288, 192)
    assert one(300, 200, upscale=False, crop_aspect="square").size == (192, 192)
    assert one(300, 200, upscale=False, crop=False).size == (304, 192)
    assert one(900, 600, upscale=False) == one(900, 600)


@pytest.mark.parametrize("settings, size, action", [
    ({"minimum": 512}, (500, 500), "accept"), ({"minimum": 512, "too_small": "skip"}, (500, 500), "skip"),
    ({"minimum": 512, "too_small": "refuse"}, (500, 500), "refuse"), ({"minimum": 512, "too_small": "skip"},
    (512, 512), "accept"),
    ({"minimum": 512, "too_small": "skip"}, (1024, 256), "accept"),
    ({"minimum": 512, "too_small": "skip", "resolution_type": "pixel"}, (1024, 256), "skip"),
    ({"minimum": 0.25, "too_small": "skip", "resolution_type": "area"}, (511, 511), "skip"),
    ({"maximum": 512, "too_large": "skip"}, (513, 513), "skip"), ({"maximum": 512, "too_large": "refuse"},
    (513, 513), "refuse"),
    ({"maximum": 512}, (513, 513), "accept"), ({"maximum": 512, "too_large": "skip"}, (512, 512), "accept"),
    ({"crop": False}, (900, 100), "skip"), ({}, (900, 100), "accept"),
])  # fmt: skip
def test_size_rules(settings, size, action):
    assert crops.problem(*size, CropSettings(**settings))[0] == action


def test_size_rules_name_the_image(tmp_path):
    picture(tmp_path / "small.png", (32, 32), "blue")
    picture(tmp_path / "large.png", (128, 128))
    kept = read(tmp_path, crop_options=CropSettings(minimum=64, too_small="skip"))
    assert [i.path.name for i in kept.items] == ["large.png"]
    assert kept.skipped == ("small.png: 32x32 is below the minimum of 64 pixels squared",)
    with pytest.raises(UserError, match="small.png: 32x32 is below the minimum"):
        read(tmp_path, crop_options=CropSettings(minimum=64, too_small="refuse"))
    with pytest.raises(UserError, match="large.png: 128x128 is above the maximum of 64 pixels"):
        read(tmp_path, crop_options=CropSettings(maximum=64, too_large="refuse"))


def test_flips_and_several_crops_multiply():
    flipped = made(900, 600, flip_x=True, flip_y=True)
    assert [(c.flip_x, c.flip_y) for c in flipped] == [(False, False), (True, False), (False, True), (True, True)]
    assert len({c.box for c in made(900, 600, crop_aspect="square", crop_style="random", crops=3)}) == 3
    assert (
        len(made(900, 600, crop_aspect="square", crop_style="random", crops=3, flip_x=True, resolutions=(512, 768)))
        == 12
    )


def test_what_is_cut_is_what_the_box_says():
    """Red tells where a pixel was from left to right, green from top to bottom."""
    image = gradient((256, 256))
    pixels = np.asarray(cut(image, Crop((64.0, 0.0, 192.0, 128.0), (64, 64))), dtype=float)
    assert abs(pixels[32, 0, 0] - image.getpixel((65, 0))[0]) <= 2
    assert abs(pixels[32, 63, 0] - image.getpixel((190, 0))[0]) <= 2
    mirrored = np.asarray(cut(image, Crop((64.0, 0.0, 192.0, 128.0), (64, 64), flip_x=True, flip_y=True)), dtype=float)
    assert np.array_equal(mirrored, pixels[::-1, ::-1])


@pytest.mark.parametrize(
    "text, values", [("512, 768 1024", (512, 768, 1024)), ("1:1;3:2 0.75", (1, 1.5, 0.75)), ("", ())]
)
def test_numbers(text, values):
    assert ratios(text, "x") == values


@pytest.mark.parametrize("text", ["big", "1:0", "1:a"])
def test_what_is_no_number_is_named(text):
    with pytest.raises(UserError, match=f"aspects has '{text}', which is no number"):
        ratios(text, "aspects")


@pytest.mark.parametrize("settings, words", [
    ({"resolutions": (-1,)}, "resolutions are"), ({"aspects": (20.0,)}, "between 1:8 and 8:1"),
    ({"crop_aspect": "random"}, "aspects is empty"),
    ({"crops": 2}, "takes crop on and crop_style 'random'"),
    ({"minimum": 9, "maximum": 5}, "maximum 5 is below minimum 9"),
])  # fmt: skip
def test_options_that_cannot_work_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        CropSettings(**settings)


options = st.builds(
    CropSettings,
    resolutions=st.sampled_from([(), (256,), (128, 512, 1000.5)]),
    use=st.sampled_from(["each", "nearest"]),
    resolution_type=st.sampled_from(["pixel", "pixel_area"]),
    upscale=st.booleans(),
    crop=st.just(True),
    crop_aspect=st.sampled_from(choices(CropSettings, "crop_aspect")),
    aspects=st.sampled_from([(1.0, 1.5, 0.3), (8.0, 1 / 8)]),
    crop_style=st.sampled_from(["center", "random", "corner"]),
    flip_x=st.booleans(),
    flip_y=st.booleans(),
    seed=st.integers(0, 99),
) | st.builds(CropSettings, crop=st.just(False), upscale=st.booleans(), resolution_type=st.sampled_from(["pixel",
"pixel_area"]))  # fmt: skip


@given(st.integers(16, 20000), st.integers(16, 20000), st.sampled_from([64, 512, 1024]), options, st.text(max_size=3))
def test_no_crop_leaves_the_image_and_no_size_is_odd(width, height, resolution, options, digest):
    if crops.problem(width, height, options)[0] != "accept":
        return
    for crop in crops.crops(width, height, digest, resolution, options):
        left, top, right, bottom = crop.box
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        assert all(side % 16 == 0 and side >= 16 for side in crop.size)
        if options.crop:  # and then nothing is distorted
            assert math.isclose((right - left) / (bottom - top), crop.size[0] / crop.size[1], rel_tol=1e-6)
        if not options.upscale and options.crop and min(width, height) >= 16 * 8:
            assert crop.size[0] <= width and crop.size[1] <= height
