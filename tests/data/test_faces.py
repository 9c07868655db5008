"""Crops around faces, with OpenCV's own cascade, and what is said where it cannot be had."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pictures import picture, read
from PIL import Image, ImageDraw, ImageFilter

from flux2_train.data import faces
from flux2_train.data.folder import read_folder
from flux2_train.data.index import Index
from flux2_train.settings.crops import CropSettings
from flux2_train.settings.dataset_folder import DatasetSettings

ROOT = Path(__file__).resolve().parents[2]
FACE = CropSettings(crop_aspect="square", crop_style="face")
HEAD = 600, 60, 800, 330  # of ``portrait``: left, top, right, bottom


def portrait() -> Image.Image:
    """900x400 with a drawn face right of the middle, lit from above, out of focus and grainy as a photograph is."""
    image = Image.new("L", (900, 400), 120)
    draw = ImageDraw.Draw(image)
    draw.ellipse(HEAD, fill=210)
    for x in (650, 750):
        draw.ellipse((x - 30, 140, x + 30, 175), fill=70)
        draw.rectangle((x - 34, 118, x + 34, 130), fill=80)
    draw.polygon(((700, 160), (682, 230), (718, 230)), fill=240)
    draw.rectangle((655, 262, 745, 280), fill=90)
    light = np.linspace(15, -15, 400)[:, None] + np.random.default_rng(0).normal(0, 4, (400, 900))
    lit = np.asarray(image.filter(ImageFilter.GaussianBlur(4)), float) + light
    return Image.fromarray(lit.clip(0, 255).astype(np.uint8)).convert("RGB")


@pytest.fixture
def folder(tmp_path):
    portrait().save(tmp_path / "a.jpg", quality=95)
    (tmp_path / "a.txt").write_text("someone")
    return tmp_path


def box(folder, **crop):
    (item,) = read(folder, crop_options=CropSettings(crop_aspect="square", **crop)).items
    return item.view.crop.box


def test_the_crop_holds_the_whole_face_which_the_centre_does_not(folder):
    left, top, right, bottom = box(folder, crop_style="face")
    assert left <= HEAD[0] and right >= HEAD[2] and (top, bottom) == (0, 400)
    assert right - left == pytest.approx(400) and right <= 900
    assert box(folder, crop_style="center") == (250, 0, 650, 400)
    Image.open(folder / "a.jpg").resize((3600, 1600)).save(folder / "a.jpg")  # found on a smaller copy
    assert box(folder, crop_style="face") == pytest.approx([4 * side for side in (left, top, right, bottom)], abs=4 * 8)


def test_the_largest_of_several_faces_counts(folder):
    both = portrait()
    both.paste(both.crop((560, 40, 840, 380)).resize((140, 170)), (40, 100))
    both.save(folder / "a.jpg", quality=95)
    assert box(folder, crop_style="face")[0] > 300


def test_faces_are_looked_for_once_and_pictures_without_one_are_named(folder, tmp_path_factory, monkeypatch):
    picture(folder / "plain.png", (90, 40))
    found, looked, index = faces.largest_face, [], tmp_path_factory.mktemp("index")
    monkeypatch.setattr(faces, "largest_face", lambda image: looked.append(image.size) or found(image))

    def again():
        progress = []
        dataset = read_folder(
            DatasetSettings(folder, resolution=64, crop_options=FACE), Index(index), lambda *said: progress.append(said)
        )
        return dataset, progress

    dataset, progress = again()
    assert "no face was found in 1 image, cut around its centre: plain.png" in dataset.warnings
    assert ("finding faces", 2, 2) in progress and sorted(looked) == [(90, 40), (900, 400)]
    assert again()[0].items == dataset.items and len(looked) == 2


@pytest.mark.long
@pytest.mark.parametrize("cv2, words", [
    ("None", "needs OpenCV, which is not installed: pip install 'opencv-python-headless<5'"),
    ("types.SimpleNamespace(__version__='5.0.0')", "OpenCV 5.0.0 does not have: pip install 'opencv-"),
])  # fmt: skip
def test_where_faces_cannot_be_found_that_is_said_by_name(folder, cv2, words):
    """In a process of its own that cannot import OpenCV, or that has version 5, which has no cascades."""
    code = (
        f"import sys, types; sys.modules['cv2'] = {cv2}\n"
        "from flux2_train.data.folder import read_folder\n"
        "from flux2_train.settings.dataset_folder import CropSettings, DatasetSettings\n"
        "from pathlib import Path\n"
        "read_folder(DatasetSettings(Path(sys.argv[1]), resolution=64, crop_options=CropSettings(crop_style='face')))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], cwd=ROOT, env=dict(os.environ), capture_output=True, text=True
    )
    said = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and "UserError: crop_style 'face' needs" in said and words in said
