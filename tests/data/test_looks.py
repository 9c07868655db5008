"""Pictures that look nearly the same are named, different ones are not."""

import io
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from flux2_train.data import looks
from flux2_train.data.folder import read_folder
from flux2_train.data.images import examine
from flux2_train.settings.dataset_folder import DatasetSettings

DATASETS = Path(__file__).resolve().parents[2] / "datasets"
SETS = ("robot", "character", "style", "edit")


def saved(image, **options):
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()


def cut(image, share):
    left, top = (int(side * share) for side in image.size)
    return image.crop((left, top, image.width - left, image.height - top))


COPIES = {
    "saved as JPEG": lambda image: saved(image, format="JPEG", quality=40),
    "half as large": lambda image: saved(image.resize((image.width // 2, image.height // 2)), format="PNG"),
    "larger": lambda image: saved(image.resize((image.width * 3 // 2, image.height * 3 // 2)), format="WEBP"),
    "brighter": lambda image: saved(ImageEnhance.Brightness(image).enhance(1.1), format="PNG"),
    "cut": lambda image: saved(cut(image, 0.02), format="PNG"),
    "cut, smaller, JPEG": lambda image: saved(cut(image, 0.01).resize((90, 90)), format="JPEG", quality=60),
}  # fmt: skip


def pictures(name):
    return [Image.open(path).convert("RGB") for path in sorted((DATASETS / name).glob("*.png"))]


@pytest.mark.parametrize("name", SETS)
def test_no_two_pictures_of_our_data_sets_look_the_same(name):
    assert looks.alike([looks.look_of(image) for image in pictures(name)]) == []


@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_looks_like_its_original(copy):
    originals = [image for name in SETS for image in pictures(name)[:4]]
    found = [looks.look_of(image) for image in originals]
    found += [examine(COPIES[copy](image)).look for image in originals]
    assert looks.alike(found) == [[number, number + len(originals)] for number in range(len(originals))]


def test_the_coarse_form_is_the_lowest_frequencies_of_each_colour():
    """Against the sum that defines the cosine transform, up to its scale and rounding to 127ths."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    wave = [[math.cos(math.pi * (2 * x + 1) * k / 128) for x in range(64)] for k in range(8)]
    scale = np.array([math.sqrt((1 if k == 0 else 2) / 64) for k in range(8)])
    wanted = np.einsum("kx,ly,xyc,k,l->klc", wave, wave, pixels.astype(float), scale, scale).reshape(64, 3)[1:]
    found = np.frombuffer(bytes.fromhex(looks.look_of(Image.fromarray(pixels))), np.int8).reshape(63, 3)
    assert np.abs(found - wanted / np.abs(wanted).max() * 127).max() < 0.51


def test_pictures_of_one_colour_are_compared_with_none():
    plain = [looks.look_of(Image.new("RGB", (64, 48), colour)) for colour in ("red", "red", "white")]
    assert plain == ["", "", ""] and looks.alike(plain) == []


def test_what_is_linked_is_one_group(monkeypatch):
    """Each picture is like its neighbour, the first is not like the last; the same in small parts."""
    forms = [[100, round(100 * math.tan(0.15 * step)), *[0] * 187] for step in range(4)] + [[0, 0, 90, *[0] * 186]]
    chain = [np.array(form, np.int8).tobytes().hex() for form in forms]
    assert looks.alike(["", *chain, chain[4]]) == [[1, 2, 3, 4], [5, 6]]
    assert looks.alike([chain[0], chain[3]]) == []
    monkeypatch.setattr(looks, "_ROWS", 2)
    assert looks.alike(["", *chain, chain[4]]) == [[1, 2, 3, 4], [5, 6]]


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_picture_that_is_turned_by_its_exif_looks_as_it_is_shown(kind):
    image, exif = pictures("robot")[1], Image.Exif()
    exif[0x0112] = 6
    turned = saved(image.transpose(Image.Transpose.ROTATE_90), format=kind, exif=exif)
    assert looks.alike([looks.look_of(image), examine(turned).look]) == [[0, 1]]


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "I;16", "1"])
def test_a_picture_of_any_mode_has_a_look(mode):
    image = pictures("robot")[1]
    deep = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    other = deep if mode == "I;16" else image.convert(mode)
    kind = "TIFF" if mode == "CMYK" else "PNG"
    of_grey = looks.look_of(
        image.convert("L" if mode in ("L", "LA", "I;16") else "1" if mode == "1" else "RGB").convert("RGB")
    )
    assert looks.alike([of_grey, examine(saved(other, format=kind)).look]) == [[0, 1]]


def test_the_folder_names_them_and_the_same_picture_twice_only_once(tmp_path):
    for number, image in enumerate(pictures("robot")[:3]):
        (tmp_path / f"{number}.png").write_bytes(saved(image, format="PNG"))
    (tmp_path / "same.png").write_bytes((tmp_path / "0.png").read_bytes())
    (tmp_path / "smaller.jpg").write_bytes(COPIES["cut, smaller, JPEG"](pictures("robot")[1]))
    said = read_folder(DatasetSettings(tmp_path, resolution=64, captions="file name")).warnings
    assert [text for text in said if "same" in text] == [
        "the same image is there 2 times: 0.png, same.png", "2 images look nearly the same: 1.png, smaller.jpg",
    ]  # fmt: skip
