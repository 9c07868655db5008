"""Turned and recoloured variations: drawn from a seed, inside the picture, followed by masks and references."""

import colorsys
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import gradient
from PIL import Image

from flux2_train.data import crops, variations
from flux2_train.data.folder import read_folder
from flux2_train.data.masks import mask_grid
from flux2_train.data.render import cut, render
from flux2_train.settings.crops import CropSettings
from flux2_train.settings.dataset_folder import DatasetSettings, MaskSettings, ReferenceSettings


def made(**options):
    return crops.crops(900, 600, "digest", 512, CropSettings(**options))


def test_off_is_what_it_was_and_so_is_the_name_of_what_is_cached():
    (crop,) = made()
    assert crop.canonical() == {"box": crop.box, "size": crop.size, "flip_x": False, "flip_y": False}
    assert made(rotation=0.0, color_jitter=0.0) == (crop,)


def test_the_image_as_it_is_comes_first_and_each_variation_is_another():
    plain, *varied = made(rotation=10.0, color_jitter=0.1, variations=3)
    assert plain == made()[0] and len({each.angle for each in varied}) == len({each.colours for each in varied}) == 3
    assert all(0 < abs(each.angle) <= 10 and each.size == plain.size for each in varied)
    assert varied == list(made(rotation=10.0, color_jitter=0.1, variations=4)[1:4])  # a longer list begins alike
    assert made(rotation=10.0)[1].colours == () and made(color_jitter=0.1)[1].angle == 0
    assert len(made(rotation=10.0, variations=2, flip_x=True)) == 6
    assert made(rotation=10.0, seed=1)[1].angle != varied[0].angle


@given(st.floats(16, 4000), st.floats(16, 4000), st.floats(-45, 45))
def test_a_turned_box_lies_in_the_box_and_touches_it(width, height, angle):
    inner = variations.turned_within((10.0, 20.0, 10 + width, 20 + height), angle)
    wide, high = variations.extent(inner[2] - inner[0], inner[3] - inner[1], angle)
    assert wide <= width + 1e-6 and high <= height + 1e-6
    assert wide == pytest.approx(width) or high == pytest.approx(height)
    assert (inner[2] - inner[0]) / (inner[3] - inner[1]) == pytest.approx(width / height)


@pytest.mark.parametrize("angle", [7.0, -30.0])
def test_pixels_are_those_of_pillows_own_rotation(angle):
    image = gradient((240, 160))
    box = variations.turned_within((0.0, 0.0, 240.0, 160.0), angle)
    size = round(box[2] - box[0]), round(box[3] - box[1])
    box = variations.about_centre((0.0, 0.0, 240.0, 160.0), 1, *size)
    ours = cut(image, crops.Crop(box, size, angle=angle))
    left, top = (240 - size[0]) // 2, (160 - size[1]) // 2
    turned = image.rotate(angle, Image.Resampling.BICUBIC)
    theirs = turned.crop((left, top, left + size[0], top + size[1]))
    middle = (slice(4, -4), slice(4, -4))
    assert np.abs(np.asarray(ours, int) - np.asarray(theirs, int))[middle].max() <= 6


def test_no_corner_of_a_turned_picture_is_empty():
    white = Image.new("RGB", (300, 200), "white")
    for crop in crops.crops(300, 200, "x", 128, CropSettings(rotation=45.0, variations=20)):
        assert np.asarray(cut(white, crop)).min() >= 254


def test_colours_are_changed_as_the_numbers_say():
    grey, red = Image.new("RGB", (8, 8), (100, 100, 100)), Image.new("RGB", (8, 8), (200, 20, 20))
    assert variations.recoloured(grey, (1.2, 1.0, 1.0, 0.0)).getpixel((0, 0)) == (120, 120, 120)
    hue = colorsys.rgb_to_hsv(*(v / 255 for v in variations.recoloured(red, (1, 1, 1, 90.0)).getpixel((0, 0))))[0]
    assert hue * 360 == pytest.approx(90, abs=2)
    drawn = [variations.draw_colours(random.Random(n), 0.1) for n in range(200)]
    assert all(0.9 <= f <= 1.1 for each in drawn for f in each[:3]) and all(abs(each[3]) <= 3.6 for each in drawn)


def test_masks_turn_along_and_references_turn_and_change_colour_along(tmp_path):
    left_half = Image.new("L", (128, 128))
    left_half.paste(255, (0, 0, 64, 128))
    colour = Image.merge("RGB", (left_half, Image.new("L", (128, 128), 60), Image.new("L", (128, 128), 90)))
    for name, image in (("images", colour), ("masks", left_half), ("before", colour)):
        (tmp_path / name).mkdir()
        image.save(tmp_path / name / "one.png")
    settings = DatasetSettings(
        tmp_path / "images", resolution=128, prompt="a", references=(tmp_path / "before",),
        crop_options=CropSettings(rotation=30.0, color_jitter=0.3), 
        mask_options=MaskSettings(tmp_path / "masks", minimum=0.1),
        reference_options=ReferenceSettings("strict"),
    )  # fmt: skip
    plain, varied = read_folder(settings).items
    assert varied.view.crop.angle and varied.references[0].crop == varied.view.crop
    assert np.array_equal(np.asarray(render(varied.view)), np.asarray(render(varied.references[0])))
    red = np.asarray(render(varied.view).resize((8, 8), Image.Resampling.BOX), int)[..., 0]
    grid = mask_grid(varied.mask)[0, 0].numpy()
    assert np.corrcoef(red.ravel(), grid.ravel())[0, 1] > 0.99
    assert np.corrcoef(np.asarray(mask_grid(plain.mask)).ravel(), grid.ravel())[0, 1] < 0.95
