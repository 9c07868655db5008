"""Folders as people have them: image kinds, captions, triggers, and what is said about files that cannot be used."""

import numpy as np
import pytest
import torch
from PIL import Image

from flux2_train.data import cache, folder
from flux2_train.data.images import fit, load_rgb, size_of
from flux2_train.data.order import batches, epoch_batches, step_count
from flux2_train.errors import UserError


@pytest.fixture
def images(tmp_path):
    for name, size in (("b", (64, 64)), ("a", (96, 64)), ("c", (64, 64))):
        Image.new("RGB", size, "red").save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f"[trigger] picture {name}\n")
    return tmp_path


def test_items_come_in_order_with_captions_and_buckets(images):
    dataset = folder.read_folder(images, 64, trigger="zbot", class_word="toy")
    assert [(i.path.stem, i.size, i.caption, i.class_caption) for i in dataset.items] == [
        ("a", (80, 48), "zbot picture a", "toy picture a"),
        ("b", (64, 64), "zbot picture b", "toy picture b"),
        ("c", (64, 64), "zbot picture c", "toy picture c"),
    ]
    assert dataset.summary().splitlines() == [f"3 images x 1 from {images.name}", "64x64: 2", "80x48: 1"]


@pytest.mark.parametrize("caption, trigger, word, expected", [
    ("a [trigger] dog", "ohwx", None, "a ohwx dog"),
    ("a dog", "ohwx", None, "ohwx, a dog"),
    ("a dog", "", None, "a dog"),
    ("a [trigger] dog", "", None, "a dog"),
    ("ohwx runs", "ohwx", "dog", "dog runs"),
    ("a dog", "ohwx", "dog", "dog, a dog"),
    ("a photo of ohwx dog", "ohwx", "dog", "a photo of dog"),
    ("", "ohwx", None, "ohwx"),
])  # fmt: skip
def test_trigger(caption, trigger, word, expected):
    assert folder.with_trigger(caption, trigger, word) == expected


def test_caption_sources(images):
    def captions(**kwargs):
        return [i.caption for i in folder.read_folder(images, 64, **kwargs).items]

    assert captions(captions=folder.FILE_NAME) == ["a", "b", "c"]
    assert captions(captions=folder.ONE_PROMPT, prompt="a thing") == ["a thing"] * 3
    (images / "b.txt").unlink()
    assert captions(prompt="fallback") == ["picture a", "fallback", "picture c"]
    with pytest.raises(UserError, match=r"1 of 3 images have no caption file \(b.png"):
        captions()


def test_references_belong_to_images_by_name(images, tmp_path_factory):
    before = tmp_path_factory.mktemp("before")
    for name in "ab":
        Image.new("RGB", (64, 32)).save(before / f"{name}.jpg")
    with pytest.raises(UserError, match=r"c.png has no reference: .* holds no image named c"):
        folder.read_folder(images, 64, references=before)
    Image.new("RGB", (32, 64)).save(before / "c.bmp")
    dataset = folder.read_folder(images, 64, references=before)
    assert [[p.name for p in item.references] for item in dataset.items] == [["a.jpg"], ["b.jpg"], ["c.bmp"]]
    shapes = {path.name: pixels.shape[1:3] for path, pixels in cache.encode_images(dataset, lambda pixels: pixels)}
    assert shapes == dict.fromkeys(("a.png", "a.jpg", "b.jpg"), (48, 80)) | {
        "b.png": (64, 64),
        "c.png": (64, 64),
        "c.bmp": (80, 48),
    }


def test_without_a_class_word_nothing_more_is_encoded(images):
    dataset = folder.read_folder(images, 64, trigger="zbot")
    assert len(cache.texts(dataset)) == 3
    assert len(cache.texts(folder.read_folder(images, 64, trigger="zbot", class_word="toy"))) == 6


def test_unusable_files_are_named_with_the_reason(images):
    (images / "broken.png").write_bytes(b"not a picture")
    (images / "empty.jpg").write_bytes(b"")
    dataset = folder.read_folder(images, 64)
    assert len(dataset.items) == 3
    assert [s.split()[0] for s in dataset.skipped] == ["broken.png", "empty.jpg"]


def test_hopeless_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="There is no folder"):
        folder.read_folder(tmp_path / "nowhere", 64)
    with pytest.raises(UserError, match="holds no usable image"):
        folder.read_folder(tmp_path, 64)
    Image.new("RGB", (64, 64)).save(tmp_path / "x.png")
    (tmp_path / "x.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError, match=r"x.txt is not UTF-8"):
        folder.read_folder(tmp_path, 64)


def test_sideways_photos_are_turned(tmp_path):
    picture = Image.new("RGB", (40, 20), "red")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert size_of(tmp_path / "turned.jpg") == load_rgb(tmp_path / "turned.jpg").size == (20, 40)


def test_transparency_is_flattened_on_white_and_deep_grey_keeps_its_range(tmp_path):
    Image.new("RGBA", (16, 16), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert load_rgb(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    Image.fromarray(np.full((16, 16), 32768, dtype=np.uint16)).save(tmp_path / "deep.png")
    assert load_rgb(tmp_path / "deep.png").getpixel((0, 0)) == (128, 128, 128)
    Image.new("CMYK", (16, 16)).save(tmp_path / "print.jpg")
    Image.new("P", (16, 16)).save(tmp_path / "palette.png")
    assert load_rgb(tmp_path / "print.jpg").mode == load_rgb(tmp_path / "palette.png").mode == "RGB"


def test_truncated_files_are_named(tmp_path):
    Image.effect_noise((256, 256), 90).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:20000])
    with pytest.raises(UserError, match=r"cut.png cannot be read as an image"):
        load_rgb(tmp_path / "cut.png")


def test_fit_crops_the_centre():
    stripes = Image.new("RGB", (96, 32), "red")
    stripes.paste("blue", (32, 0, 64, 32))
    pixels = fit(stripes, (32, 32))
    assert pixels.shape == (1, 32, 32, 3)
    assert torch.equal(pixels[0, 16, 16], torch.tensor([0.0, 0.0, 1.0]))


def test_caches_of_different_datasets_do_not_mix(robot):
    other = folder.Dataset(robot.dataset.folder, robot.dataset.items[:5], 1, "zbot", "toy", 64)
    with pytest.raises(UserError, match="different data sets"):
        cache.samples(robot.embeds, cache.LatentCache(other, robot.latents.latents))


def test_every_image_once_per_repeat_and_epoch_in_batches_of_one_shape(robot):
    samples = cache.samples(robot.embeds, robot.latents)
    seen = epoch_batches(samples, 2, 3, seed=1, epoch=0)
    assert sorted(i for b in seen for i in b) == sorted(list(range(6)) * 3)
    assert all(len({samples[i].latent.shape for i in b}) == 1 for b in seen)
    assert seen == epoch_batches(samples, 2, 3, seed=1, epoch=0)
    assert seen != epoch_batches(samples, 2, 3, seed=1, epoch=1)


def test_steps_and_epochs_are_counted_exactly(robot):
    samples = cache.samples(robot.embeds, robot.latents)
    assert len(list(batches(samples, 2, 1, 0, steps=17, epochs=0))) == 17
    for epochs in (1, 3):
        assert len(list(batches(samples, 2, 2, 0, 0, epochs))) == step_count(samples, 2, 2, 0, epochs)
