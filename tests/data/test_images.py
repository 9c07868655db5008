"""Every kind of image comes out upright and in 8-bit RGB with the right colours."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import gradient
from PIL import Image, features

from flux2_train.data.crops import Crop
from flux2_train.data.dataset import View
from flux2_train.data.images import (
    digest_of,
    examine,
    load_rgb,
    open_shrunk,
    open_upright,
    to_alpha,
    to_grey,
    to_rgb,
)
from flux2_train.data.render import cut, render
from flux2_train.errors import UserError

ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


def corners() -> Image.Image:
    """40x20 with four colours, each in its corner."""
    image = Image.new("RGB", (40, 20), "red")
    for box, colour in (((20, 0, 40, 10), "lime"), ((0, 10, 20, 20), "blue"), ((20, 10, 40, 20), "white")):
        image.paste(colour, box)
    return image


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
def test_exif_orientation_is_obeyed(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = corners()
    stored.save(tmp_path / f"x.{suffix}", exif=exif, **({"quality": 100} if suffix != "tiff" else {}))
    shown = stored.transpose(ORIENTATIONS[orientation])
    loaded = load_rgb(tmp_path / f"x.{suffix}")
    assert loaded.size == shown.size == examine((tmp_path / f"x.{suffix}").read_bytes()).size
    assert np.abs(np.asarray(loaded, int) - np.asarray(shown, int)).mean() < 8


def saved(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


GREY, GREEN = (100, 100, 100), (0, 128, 0)


@pytest.mark.parametrize("data, expected", [
    (saved(Image.new("L", (16, 16), 100), "PNG"), GREY),
    (saved(Image.new("LA", (16, 16), (100, 255)), "PNG"), GREY),
    (saved(Image.new("1", (16, 16), 1), "PNG"), (255, 255, 255)),
    (saved(Image.new("RGB", (16, 16), GREEN).convert("P"), "PNG"), None),
    (saved(Image.new("RGB", (16, 16), GREEN).quantize(4), "PNG"), GREEN),
    (saved(Image.new("CMYK", (16, 16), (0, 0, 0, 0)), "JPEG"), (255, 255, 255)),
    (saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "TIFF"), (255, 0, 0)),
    (saved(Image.fromarray(np.full((16, 16), 25700, np.uint16)), "PNG"), GREY),
    (saved(Image.fromarray(np.full((16, 16), 200, np.uint16)), "PNG"), (1, 1, 1)),  # dark, not 8 bits deep
    (saved(Image.fromarray(np.full((16, 16), 25700, np.uint16)), "TIFF"), GREY),
    (saved(Image.fromarray(np.full((16, 16), 25700, np.int32)), "TIFF"), GREY),
    (saved(Image.fromarray(np.full((16, 16), 100 / 255, np.float32)), "TIFF"), GREY),
    (saved(Image.new("RGB", (16, 16), GREEN), "BMP"), GREEN),
    (saved(Image.new("RGB", (16, 16), GREEN), "WEBP", lossless=True), GREEN),
], ids=["grey", "grey-alpha", "bilevel", "web-palette", "palette", "cmyk", "cmyk-tiff", "16-bit", "16-bit-dark",
        "16-bit-tiff", "32-bit-tiff", "float-tiff", "bmp", "webp"])  # fmt: skip
def test_modes(tmp_path, data, expected):
    (tmp_path / "x.png").write_bytes(data)
    loaded = load_rgb(tmp_path / "x.png")
    assert loaded.mode == "RGB" and loaded.size == examine(data).size == (16, 16)
    if expected:
        assert loaded.getpixel((8, 8)) == expected


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif(tmp_path):
    Image.new("RGB", (16, 16), "red").save(tmp_path / "x.avif", quality=100)
    red, green, blue = load_rgb(tmp_path / "x.avif").getpixel((8, 8))
    assert red > 245 and green < 10 and blue < 10


def test_transparency_is_flattened_on_the_chosen_colour():
    clear = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    half = Image.new("RGBA", (16, 16), (255, 0, 0, 128))
    keyed = Image.new("P", (16, 16))
    keyed.info["transparency"] = 0
    assert to_rgb(clear).getpixel((0, 0)) == (255, 255, 255)
    assert to_rgb(clear, "#102030").getpixel((0, 0)) == (16, 32, 48)
    assert to_rgb(half, "black").getpixel((0, 0)) == (128, 0, 0)
    assert to_rgb(Image.open(io.BytesIO(saved(keyed, "PNG", transparency=0))), "lime").getpixel((0, 0)) == (0, 255, 0)
    assert to_alpha(half).getpixel((0, 0)) == 128 and to_alpha(corners()).getpixel((0, 0)) == 255
    assert to_grey(Image.new("RGBA", (16, 16), (255, 255, 255, 0))).getpixel((0, 0)) == 0


def test_alpha_is_told_apart():
    assert not examine(saved(corners(), "PNG")).alpha
    for image in (corners().convert("RGBA"), corners().convert("LA")):
        assert examine(saved(image, "PNG")).alpha
    assert examine(saved(corners().convert("P"), "PNG", transparency=3)).alpha


def test_truncated_files_are_named(tmp_path):
    Image.effect_noise((256, 256), 90).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:20000])
    with pytest.raises(UserError, match=r"cut.png cannot be read as an image"):
        load_rgb(tmp_path / "cut.png")


@given(st.sampled_from(["PNG", "JPEG", "WEBP", "TIFF", "BMP"]), st.data())
def test_no_broken_file_gets_through_or_brings_anything_down(kind, drawn):
    data = bytearray(saved(corners(), kind))
    for _ in range(drawn.draw(st.integers(1, 8))):
        data[drawn.draw(st.integers(0, len(data) - 1))] = drawn.draw(st.integers(0, 255))
    data = bytes(data[: drawn.draw(st.integers(0, len(data)))])
    facts = examine(data)
    assert facts.problem or min(facts.size) >= 16


def scene(size: tuple[int, int]) -> Image.Image:
    """Bars with hard edges over a gradient: an edge tells a shift of a fraction of a pixel."""
    image = gradient(size)
    for left in range(101, size[0], 397):
        image.paste("white", (left, 0, left + 150, size[1] // 2))
    for top in range(57, size[1], 331):
        image.paste("black", (0, top, size[0], top + 90))
    return image


@pytest.mark.long(cases=8)
@pytest.mark.parametrize("orientation", [1, *ORIENTATIONS])
@pytest.mark.parametrize("size, box, shrink", [
    ((128, 96), (3.0, 5.0, 1603.0, 1205.0), 4), ((64, 64), (0.0, 0.0, 1200.0, 1200.0), 8),
    ((320, 240), (400.5, 10.25, 1680.5, 970.25), 2), ((512, 512), (0.0, 0.0, 1200.0, 1200.0), 1),
])  # fmt: skip
def test_a_jpeg_decoded_small_shows_the_same_picture_at_the_same_place(tmp_path, orientation, size, box, shrink):
    """No edge moves by a quarter of a pixel, which would change it by a quarter of 255."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = scene((2000, 1208) if orientation < 5 else (1208, 2000))
    stored.save(tmp_path / "x.jpg", quality=100, subsampling=0, exif=exif)
    data, crop = (tmp_path / "x.jpg").read_bytes(), Crop(box, size)
    image, times = open_shrunk(data, "x.jpg", crop.room)
    assert times == shrink and image.size == (2000 // shrink, 1208 // shrink)
    small = np.asarray(cut(image, crop.shrunk(times)), int)
    whole = np.asarray(cut(open_upright(data, "x.jpg"), crop), int)
    assert np.abs(small - whole).max() < 64
    view = View(tmp_path / "x.jpg", digest_of(data), crop)
    assert np.array_equal(np.asarray(render(view)), small)


@pytest.mark.parametrize(
    "kind, size, shrink", [("JPEG", (804, 800), 4), ("JPEG", (803, 800), 1), ("PNG", (800, 800), 1)]
)
def test_what_cannot_be_decoded_small_exactly_is_decoded_whole(kind, size, shrink):
    image, times = open_shrunk(saved(scene(size), kind), "x", 20.0)
    assert times == shrink and image.size == (size[0] // shrink, size[1] // shrink)
