"""Folders as people have them: what is found, in which order, and what is said about files that cannot be used."""

import os
import sys
from dataclasses import replace

import pytest
import torch
from pictures import captions_of, picture, read
from PIL import Image, ImageFile

from flux2_train.data import cache
from flux2_train.data.folder import read_folder
from flux2_train.data.index import Index
from flux2_train.data.order import batches, epoch_batches, step_count
from flux2_train.data.report import contact_sheet, summary
from flux2_train.data.samples import samples
from flux2_train.errors import UserError
from flux2_train.settings.crops import CropSettings
from flux2_train.settings.dataset_folder import CaptionSettings, DatasetSettings


@pytest.fixture
def images(tmp_path):
    for name, size, colour in (("b", (64, 64), "red"), ("a", (96, 64), "red"), ("c", (64, 64), "blue")):
        picture(tmp_path / f"{name}.png", size, colour, f"[trigger] picture {name}\n")
    return tmp_path


def test_items_come_in_order_with_captions_and_buckets(images):
    dataset = read(images, trigger="zbot", class_word="toy")
    assert [(i.path.stem, i.size, i.caption, i.class_caption) for i in dataset.items] == [
        ("a", (80, 48), "zbot picture a", "toy picture a"),
        ("b", (64, 64), "zbot picture b", "toy picture b"),
        ("c", (64, 64), "zbot picture c", "toy picture c"),
    ]
    assert summary(dataset).splitlines() == [
        f"3 images x 1 from {images.name}", "64x64: 2", "80x48: 1",
        "steps per epoch: 3 at batch 1, 2 at batch 2, 2 at batch 4",
    ]  # fmt: skip


def test_references_belong_to_images_by_name(images, tmp_path_factory):
    before = tmp_path_factory.mktemp("before")
    for name in "ab":
        Image.new("RGB", (64, 32), "green" if name == "a" else "black").save(before / f"{name}.jpg")
    with pytest.raises(UserError, match=r"1 image has no reference: .* holds no image named c"):
        read(images, references=(before,))
    Image.new("RGB", (32, 64)).save(before / "c.bmp")
    dataset = read(images, references=(before,))
    assert [[v.path.name for v in item.references] for item in dataset.items] == [["a.jpg"], ["b.jpg"], ["c.bmp"]]
    pictures = cache.encode_views(list(dataset.views()), lambda pixels: pixels)
    shapes = {view.path.name: pixels.shape[1:3] for view, pixels in pictures}
    assert shapes == dict.fromkeys(("a.png", "a.jpg", "b.jpg"), (48, 80)) | {
        "b.png": (64, 64),
        "c.png": (64, 64),
        "c.bmp": (80, 48),
    }


def test_without_a_class_word_nothing_more_is_encoded(images):
    assert len(read(images, trigger="zbot").texts()) == 3 + 1
    assert len(read(images, trigger="zbot", class_word="toy").texts()) == 6 + 1
    assert read(images).texts()[-1] == ""


@pytest.fixture
def bad(images):
    """The three good images among one of every kind of bad one, by name with what must be said about it."""
    (images / "broken.png").write_bytes(b"not a picture")
    (images / "empty.jpg").write_bytes(b"")
    Image.new("RGB", (1, 1)).save(images / "dot.png")
    for suffix in ("png", "jpg", "webp"):
        Image.effect_noise((256, 256), 90).save(images / f"whole.{suffix}")
        data = (images / f"whole.{suffix}").read_bytes()
        (images / f"whole.{suffix}").unlink()
        (images / f"cut.{suffix}").write_bytes(data[: len(data) * 2 // 3])
    (images / "bomb.png").write_bytes(bomb())
    (images / "photo.heic").write_bytes(b"ftypheic")
    (images / "link.png").symlink_to(images / "nowhere.png")
    return images, {
        "broken.png": "cannot be read as an image",
        "empty.jpg": "is empty (0 bytes)",
        "dot.png": "is 1x1 pixels; both sides must have at least 16",
        "cut.png": "cannot be read as an image",
        "cut.jpg": "cannot be read as an image",
        "cut.webp": "cannot be read as an image",
        "bomb.png": "has more than 178 megapixels, the most that are read",
        "photo.heic": "is of a kind that is not read here",
        "link.png": "cannot be read",
    }


def bomb() -> bytes:
    """A PNG of a few bytes that says it has ten thousand megapixels."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def test_unusable_files_are_named_with_the_reason(bad):
    images, reasons = bad
    dataset = read(images)
    assert [item.path.stem for item in dataset.items] == ["a", "b", "c"]
    assert len(dataset.skipped) == len(reasons)
    for name, reason in reasons.items():
        assert any(said.startswith(f"{name} {reason}") for said in dataset.skipped), (name, dataset.skipped)
        assert name in summary(dataset)


def test_unusable_files_are_refused_by_name_if_the_user_wants_that(bad):
    images, reasons = bad
    with pytest.raises(
        UserError, match="8 files cannot be used"
    ) as error:  # a kind that is not read was never asked for
        read(images, bad_files="refuse")
    assert all(f"{name} {reason}" in str(error.value) for name, reason in reasons.items() if name != "photo.heic")
    assert len(read(images, bad_files="skip").items) == 3


def test_hopeless_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="There is no folder"):
        read(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no usable image"):
        read(tmp_path)
    Image.new("RGB", (64, 64)).save(tmp_path / "x.png")
    (tmp_path / "x.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError, match=r"x.txt is not UTF-8"):
        read(tmp_path)
    with pytest.raises(UserError, match="background is 'pale'"):
        read(tmp_path, background="pale")


def test_names_of_every_kind_links_and_folders_within(tmp_path):
    names = [
        "ünïcödé 猫.png",
        "with spaces and (brackets).png",
        "n" * 200 + ".png",
        "UPPER.PNG",
        "a.b.c.png",
        "sub/x.png",
    ]
    for number, name in enumerate(names):
        picture(tmp_path / "data" / name, colour=(number, 0, 0), caption=f"number {number}")
    picture(tmp_path / "elsewhere" / "far.png", colour="blue", caption="far")
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "back").symlink_to(tmp_path / "data")  # leads round in a circle
    (tmp_path / "data" / "single.png").symlink_to(tmp_path / "elsewhere" / "far.png")
    (tmp_path / "data" / ".hidden").mkdir()
    picture(tmp_path / "data" / ".hidden" / "h.png")
    dataset = read(tmp_path / "data", prompt="from the prompt")
    said = {item.path.name: item.caption for item in dataset.items}
    assert said == {os.path.basename(n): f"number {i}" for i, n in enumerate(names)} | {
        "far.png": "far", "single.png": "from the prompt",
    }  # fmt: skip
    flat = read(tmp_path / "data", subfolders=False, prompt="x")
    assert {i.path.name for i in flat.items} == set(said) - {"x.png", "far.png"}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has file names that are no text")
def test_names_in_another_encoding_are_named_as_far_as_they_can_be_read(tmp_path):
    picture(tmp_path / "data" / "a.png", caption="x")
    picture(tmp_path / "before" / "a.png")
    for folder in ("data", "before"):
        (tmp_path / folder / os.fsdecode(b"caf\xe9.png")).write_bytes((tmp_path / "data" / "a.png").read_bytes())
    dataset = read(tmp_path / "data", references=(tmp_path / "before",))
    assert [item.path.name for item in dataset.items] == ["a.png"]
    assert dataset.skipped == ("caf?.png has a name that is no Unicode text; rename it",)
    assert "before has references that belong to no image: caf?" in dataset.warnings
    assert summary(dataset).encode()


def test_truncated_files_are_named_also_where_another_pack_fills_them_up(bad, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert {"cut.jpg", "cut.png"} <= {said.split()[0] for said in read(bad[0]).skipped}
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_max_samples_keeps_a_fixed_choice(tmp_path):
    for number in range(20):
        picture(tmp_path / f"{number:02}.png", colour=(number, 0, 0), caption=str(number))
    few = captions_of(tmp_path, max_samples=5)
    assert len(few) == 5 and few == captions_of(tmp_path, max_samples=5)
    picture(tmp_path / "new.png", colour="white", caption="new")
    assert len(set(few) & set(captions_of(tmp_path, max_samples=5))) >= 4
    assert len(captions_of(tmp_path, max_samples=50)) == 21


def test_what_the_user_should_know_is_said(tmp_path):
    for name in "abc":
        picture(tmp_path / f"{name}.png", (32, 32), caption="the same")
    dataset = read(tmp_path, resolution=64, trigger="zbot", caption_options=CaptionSettings(prepend_trigger=False))
    said = summary(dataset)
    assert "warning: 3 images are smaller than they are trained at and scaled up: a.png, b.png, c.png" in said
    assert "warning: the trigger 'zbot' is in no caption" in said
    assert "warning: all captions are equal" in said
    assert "warning: the same image is there 3 times: a.png, b.png, c.png" in said
    (tmp_path / "a.txt").unlink()
    (tmp_path / "b.txt").write_text("")
    picture(tmp_path / "c.png", caption="[trigger] is here", colour="blue")
    assert "1 image has no caption of its own and gets 'prompt': a.png" not in summary(read(tmp_path, prompt="p"))
    said = summary(read(tmp_path, prompt="p"))
    assert "warning: 2 images have no caption of their own and get 'prompt': a.png, b.png" in said
    assert "warning: captions contain [trigger] but trigger is empty" in said
    clean = read(picture(tmp_path / "own" / "x.png", caption="[trigger]").parent, trigger="zbot")
    assert clean.warnings == ()


def test_images_that_lose_much_to_the_crop_are_named(tmp_path):
    picture(tmp_path / "panorama.png", (640, 64), caption="wide")
    picture(tmp_path / "b.png", (64, 80), "blue", "x")
    said = "1 image loses more than a third of its area to the crop: panorama.png"
    assert said in read(tmp_path).warnings
    assert not any(
        "lose" in w
        for w in read(tmp_path, crop_options=CropSettings(crop_aspect="preserve", resolutions=(160,))).warnings
    )


def test_the_contact_sheet_shows_pictures_and_crop_boxes(images):
    sheet = contact_sheet(read(images))
    colours = {colour for _, colour in sheet.getcolors(1 << 20)}
    assert {(255, 0, 0), (0, 0, 255), (221, 34, 34)} <= colours  # both pictures' and the boxes'
    wide = contact_sheet(read(images.parent / images.name, resolution=256))
    assert wide.size == sheet.size


def test_files_are_read_again_only_if_they_changed(images, tmp_path_factory, monkeypatch):
    """Also if size and date are restored: ctime and inode tell."""
    folder, opened = tmp_path_factory.mktemp("index"), []
    import flux2_train.data.index as index

    real = index.read_bytes
    monkeypatch.setattr(index, "read_bytes", lambda path: opened.append(path.name) or real(path))
    monkeypatch.setattr(index, "SETTLED_SECONDS", -60.0)

    def looked_at():
        opened.clear()
        dataset = read_folder(DatasetSettings(images, resolution=64), Index(folder))
        return sorted(set(opened)), dataset.fingerprint

    assert looked_at()[0] == ["a.png", "b.png", "c.png"]
    nothing, before = looked_at()
    assert nothing == []
    stat = (images / "b.png").stat()
    data = bytearray((images / "b.png").read_bytes())
    Image.new("RGB", (64, 64), (254, 0, 0)).save(images / "new.png")
    data = (images / "new.png").read_bytes()
    (images / "new.png").unlink()
    assert len(data) == stat.st_size
    (images / "b.png").write_bytes(data)
    os.utime(images / "b.png", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (images / "b.png").stat().st_mtime_ns == stat.st_mtime_ns
    again, after = looked_at()
    assert again == ["b.png"] and after != before


def test_a_file_that_is_still_warm_is_not_trusted(images, tmp_path):
    """Two writes within one tick of the clock leave the same size and dates."""
    index = Index(tmp_path / "index")
    read_folder(DatasetSettings(images, resolution=64), index)
    assert index.rows("SELECT COUNT(*) FROM files") == [(0,)]
    old = 1_000_000_000
    for name in "abc":
        os.utime(images / f"{name}.png", (old, old))  # ctime stays now
    read_folder(DatasetSettings(images, resolution=64), index)
    assert index.rows("SELECT COUNT(*) FROM files") == [(0,)]


def test_an_index_that_is_no_database_is_made_anew(tmp_path):
    (tmp_path / "index.sqlite").write_bytes(b"no database at all" * 100)
    index = Index(tmp_path)
    index.remember("face", "x", [1, 2])
    assert Index(tmp_path).remembered("face", ["x"]) == {"x": [1, 2]}


def test_the_fingerprint_follows_content_not_place(images, tmp_path_factory):
    import shutil

    other = tmp_path_factory.mktemp("moved") / "copy"
    shutil.copytree(images, other)
    assert read(images).fingerprint == read(other).fingerprint
    (other / "a.txt").write_text("another caption")
    assert read(images).fingerprint != read(other).fingerprint


def test_caches_of_different_data_are_refused(robot):
    other = replace(robot.dataset, items=robot.dataset.items[:5])
    with pytest.raises(UserError, match="wire the same Dataset Folder into both"):
        samples(replace(robot.embeds, dataset=other), robot.latents)


def test_every_sample_is_seen_once_per_repeat_and_batches_share_a_shape(robot):
    thrice = replace(robot.dataset, sources=(replace(robot.dataset.sources[0], repeats=3),))
    data = samples(replace(robot.embeds, dataset=thrice), replace(robot.latents, dataset=thrice))
    seen = epoch_batches(data, 2, seed=1, epoch=0)
    assert sorted(i for b in seen for i in b) == sorted(list(range(6)) * 3)
    assert all(len({data[i].latent.shape for i in b}) == 1 for b in seen)
    assert seen == epoch_batches(data, 2, seed=1, epoch=0)
    assert seen != epoch_batches(data, 2, seed=1, epoch=1)


def test_steps_and_epochs_are_counted_exactly(robot):
    data = samples(robot.embeds, robot.latents)
    assert len(list(batches(data, 2, 0, steps=17, epochs=0))) == 17
    for epochs in (1, 3):
        assert len(list(batches(data, 2, 0, 0, epochs))) == step_count(data, 2, 0, epochs)


def test_a_file_that_changes_while_it_is_encoded_is_noticed(images):
    dataset = read(images)
    Image.new("RGB", (64, 64), "green").save(images / "b.png")
    with pytest.raises(UserError, match=r"b.png has changed since Dataset Folder read it; queue again"):
        list(cache.encode_views(list(dataset.views()), torch.clone))
