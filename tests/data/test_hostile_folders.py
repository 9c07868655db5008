"""Folders of images from the internet: nothing in them hangs, runs a program, fills the memory or stops the rest."""

import os
import socket
import sqlite3
import stat
import subprocess
import sys
import zlib

import pytest
from children import run_probe
from hostile import as_nobody, open_folder, within
from PIL import EpsImagePlugin, Image, features

from flux2_train.data import captions, pairs
from flux2_train.data.folder import read_folder
from flux2_train.data.images import examine, open_upright
from flux2_train.data.index import Index
from flux2_train.data.pairs import states
from flux2_train.data.report import summary
from flux2_train.errors import LONGEST, UserError
from flux2_train.settings.dataset_folder import JSONL, CaptionSettings, DatasetSettings

LINUX = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files")
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n"


@pytest.fixture
def folder(tmp_path):
    """One good image with a caption."""
    place = tmp_path / "images"
    place.mkdir()
    Image.new("RGB", (64, 64), "red").save(place / "good.png")
    (place / "good.txt").write_text("a good one")
    return place


def read(folder, may_read=pairs.anywhere, **settings):
    return read_folder(DatasetSettings(folder, resolution=64, **settings), may_read=may_read)


def test_postscript_under_an_images_name_reaches_no_interpreter(folder, tmp_path, monkeypatch):
    """Pillow starts the program gs for it, which runs what is in the file."""
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path / 'it-ran'}\n[ $1 = --version ]\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    (folder / "a.png").write_bytes(EPS)
    with pytest.raises(subprocess.CalledProcessError), Image.open(folder / "a.png") as image:
        image.load()
    assert (tmp_path / "it-ran").exists()  # so it would run
    (tmp_path / "it-ran").unlink()
    dataset = read(folder)
    assert dataset.skipped == (
        "a.png cannot be read as an image (it is no PNG, JPEG, WebP, BMP, TIFF or AVIF)",
    ) and [item.path.name for item in dataset.items] == ["good.png"]  # fmt: skip
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.parametrize("kind", ["GIF", "ICO", "PCX", "DDS", "JPEG2000", "ICNS", "QOI", "TGA", "PPM", "SGI"])
def test_formats_that_the_documents_do_not_name_are_not_decoded(tmp_path, kind):
    if kind == "JPEG2000" and not features.check("jpg_2000"):
        pytest.skip("this Pillow has no JPEG 2000")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png", kind)
    data = (tmp_path / "a.png").read_bytes()
    assert examine(data).problem == "cannot be read as an image (it is no PNG, JPEG, WebP, BMP, TIFF or AVIF)"
    with pytest.raises(UserError, match=r"a.png cannot be read as an image \(it is no PNG"):
        open_upright(data, "a.png")


@LINUX
def test_pipes_devices_and_sockets_are_skipped_by_name_at_once(folder):
    os.mkfifo(folder / "pipe.png")
    os.mkfifo(folder / "good.caption")
    (folder / "endless.png").symlink_to("/dev/zero")
    (folder / "text.png").symlink_to("/proc/self/mem")
    with socket.socket(socket.AF_UNIX) as listening, within(2, megabytes=100):
        listening.bind(str(folder / "s.png"))
        dataset = read(folder)
    assert [item.path.name for item in dataset.items] == ["good.png"]
    said = dict(text.split(" ", 1) for text in dataset.skipped)
    assert said.keys() == {"pipe.png", "endless.png", "s.png", "text.png"}
    assert all("no regular file" in said[name] for name in ("pipe.png", "endless.png", "s.png"))
    (folder / "good.txt").unlink()
    os.mkfifo(folder / "good.txt")  # as a caption it is not there
    with within(2), pytest.raises(UserError, match="1 of 1 image has no caption file"):
        read(folder)


@LINUX
def test_a_file_that_grows_is_read_up_to_the_size_it_had(tmp_path):
    """The files of /proc say that they are empty, and give bytes for as long as one reads."""
    assert stat.S_ISREG(os.stat("/proc/kallsyms" if os.path.exists("/proc/kallsyms") else "/proc/stat").st_mode)
    (tmp_path / "a.txt").symlink_to("/proc/stat")
    assert captions.read_file(tmp_path / "a.txt") == []


@LINUX
def test_unreadable_subfolders_and_links_to_themselves_are_skipped_by_name():
    with open_folder() as place:
        Image.new("RGB", (64, 64), "red").save(place / "good.png")
        (place / "good.txt").write_text("a good one")
        (place / "closed").mkdir(mode=0o000)
        (place / "loop.png").symlink_to(place / "loop.png")
        (place / "round").symlink_to(place / "round")
        with as_nobody():
            dataset = read(place)
            assert len(states(place)) == 4  # two files and two links
        assert [item.path.name for item in dataset.items] == ["good.png"]
        assert dataset.skipped == (
            "closed cannot be opened (Permission denied)",
            "loop.png cannot be read (Too many levels of symbolic links)",
        )
        (place / "closed").chmod(0o700)
        (place / "all").mkdir(mode=0o000)
        with as_nobody(), pytest.raises(UserError, match=r"all cannot be opened \(Permission denied\)"):
            read(place / "all")


def test_a_mistyped_folder_is_looked_at_alone(tmp_path, monkeypatch):
    """Its parent may be a whole disk."""
    listed, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or scandir(path))
    assert states(tmp_path / "nosuch") == [] and states(tmp_path / "nosuch.jsonl") == [] and listed == []
    with pytest.raises(UserError, match="There is no folder"):
        read(tmp_path / "nosuch")
    assert listed == []


def test_a_folder_of_too_many_files_is_refused_with_their_number(folder, monkeypatch):
    monkeypatch.setattr(pairs, "MOST_FILES", 1)
    with pytest.raises(UserError, match="holds more than 1 files: name a folder of images only"):
        read(folder)


def outside(folder):
    """A rule of places: what lies in ``folder`` after following links, and nothing else."""
    real = os.path.realpath(folder)
    return lambda path: os.path.realpath(path).startswith(real)


@LINUX
def test_links_out_of_the_places_that_may_be_read_are_skipped_by_name(folder, tmp_path):
    secret = tmp_path / "secret"
    secret.mkdir()
    Image.new("RGB", (64, 64), "blue").save(secret / "face.png")
    (secret / "face.txt").write_text("a face")
    (secret / "key.txt").write_text("the secret")
    (folder / "linked").symlink_to(secret)
    (folder / "face.png").symlink_to(secret / "face.png")
    (folder / "face.txt").symlink_to(secret / "key.txt")
    Image.new("RGB", (64, 64), "green").save(folder / "other.png")
    (folder / "other.txt").symlink_to(secret / "key.txt")
    dataset = read(folder, outside(folder), prompt="plain")
    assert {item.path.name: item.caption for item in dataset.items} == {"good.png": "a good one", "other.png": "plain"}
    assert sorted(dataset.skipped) == [
        f"{name} is a link to a place that may not be read" for name in ("face.png", "face.txt", "linked", "other.txt")
    ]
    assert "secret" not in summary(dataset) and len(states(folder, outside(folder))) == 3
    assert len(read(folder).items) == 4  # a person at this computer may


@LINUX
def test_a_line_of_a_jsonl_file_may_not_lead_out_through_a_link(folder, tmp_path):
    Image.new("RGB", (64, 64), "blue").save(tmp_path / "face.png")
    (folder / "sub").symlink_to(tmp_path)
    (folder / "lines.jsonl").write_text(
        '{"image": "good.png", "caption": "a"}\n{"image": "sub/face.png", "caption": "b"}\n'
    )
    dataset = read(folder, outside(folder), captions=JSONL)
    assert [item.path.name for item in dataset.items] == ["good.png"]
    assert "lines.jsonl names 1 link to places that may not be read: face.png" in dataset.skipped
    assert len(read(folder, captions=JSONL).items) == 2


@pytest.mark.parametrize("content", [b"SQLite format 3\0" + bytes(range(256)) * 40, b"", b"no database" * 999, "newer",
                                     "other columns", "schema"], ids=str)  # fmt: skip
def test_an_index_that_is_damaged_or_newer_is_set_aside_and_said_once(folder, tmp_path, content):
    place = tmp_path / "cache"
    Index(place).remember("face", "x" * 32, [1, 2])
    path = place / "index.sqlite"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        with sqlite3.connect(path) as connection:
            if content == "newer":
                connection.execute("PRAGMA user_version = 99")
            elif content == "other columns":
                connection.execute("ALTER TABLE files ADD COLUMN more TEXT")
            else:
                connection.execute("PRAGMA writable_schema = ON")
                connection.execute("UPDATE sqlite_master SET sql = 'CREATE TABLE owners (x' WHERE name = 'owners'")
        connection.close()
    index = Index(place)
    dataset = read_folder(DatasetSettings(folder, resolution=64), index)
    assert len(dataset.items) == 1
    told = [text for text in dataset.warnings if "is made anew" in text]
    if content:  # an empty file is a new database
        assert len(told) == 1 and (place / "index.sqlite.damaged").is_file()
    again = read_folder(DatasetSettings(folder, resolution=64), Index(place))
    assert not any("is made anew" in text for text in again.warnings) and len(again.items) == 1


def test_an_index_whose_damage_shows_late_is_made_anew_too(folder, tmp_path):
    index = Index(tmp_path / "cache")
    with index.writing() as connection:
        rows = [(f"{number:032}", "face", str([number] * 20)) for number in range(2000)]
        connection.executemany("INSERT INTO facts VALUES (?, ?, ?)", rows)
    index.connection.close()
    path = tmp_path / "cache" / "index.sqlite"
    data = bytearray(path.read_bytes())
    data[8192:] = bytes(len(data) - 8192)  # the first pages say that all is well
    path.write_bytes(data)
    index = Index(tmp_path / "cache")
    assert index.remembered("face", [f"{n:032}" for n in range(2000)]) == {}
    assert len(read_folder(DatasetSettings(folder, resolution=64), index).items) == 1 and len(index.notes) == 1


def test_facts_in_the_index_that_are_none_are_found_out_anew(folder, tmp_path):
    index = Index(tmp_path / "cache")
    settings = DatasetSettings(folder, resolution=64)
    before = read_folder(settings, index)
    for value in ('{"width": "x"}', "{", "[" * 100_000, '{"width": 64, "height": 64, "alpha": false, "problem": 3}'):
        index.connection.execute("UPDATE facts SET value = ?", (value,))
        assert read_folder(settings, index) == before


def test_names_are_shown_escaped_and_short_and_messages_end(folder):
    (folder / "a\x1b[31m\n<b>.png").write_bytes(b"x")
    (folder / ("\u202e" * 60 + "gnp.png")).write_bytes(b"x")
    for number in range(300):
        (folder / f"{'n' * 200}{number}.png").write_bytes(b"x")
    dataset = read(folder)
    said = summary(dataset)
    assert r"a\x1b[31m\n<b>.png cannot be read" in said and "\x1b" not in said and "\u202e" not in said
    assert len(said) < 20_000 and "... and 282 more" in said
    with pytest.raises(UserError, match="302 files cannot be used: .*; and 282 more. Mend or remove") as caught:
        read(folder, bad_files="refuse")
    assert len(str(caught.value)) <= LONGEST


def test_an_image_whose_name_leaves_no_room_for_a_captions_suffix_is_read(folder):
    Image.new("RGB", (64, 64), "blue").save(folder / ("n" * 251 + ".png"))  # .caption would be four bytes longer
    assert len(read(folder, prompt="p").items) == 2


def test_one_caption_file_cannot_make_a_flood_of_captions(folder):
    (folder / "good.txt").write_text("\n".join(f"{n}, a, b" for n in range(3000)))
    with within(2), pytest.raises(UserError, match=r"good.png would get 300000 captions.*at most 1000 can be"):
        read(folder, caption_options=CaptionSettings("choose", shuffle=100))
    (folder / "good.txt").write_text("\n".join(f"{n}" for n in range(1000)))
    assert len(read(folder, caption_options=CaptionSettings("choose")).items[0].captions) == 1000
    assert len(read(folder, caption_options=CaptionSettings("join")).items[0].captions) == 1


def bomb(width: int, height: int) -> bytes:
    """A black RGB picture as PNG, which needs next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    rows = zlib.compressobj(9)
    data = b"".join(rows.compress(bytes(1 + 3 * width)) for _ in range(height)) + rows.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.long
def test_small_files_of_large_pictures_are_decoded_one_at_a_time(tmp_path, full_size):
    """Six of them, of 0.7 MB each, took 2.7 GB with two threads; one alone takes four bytes for each pixel."""
    side, slack = (13_300, 256e6) if full_size else (6_000, 64e6)
    folder = tmp_path / "data"
    folder.mkdir()
    data = bomb(side, side)
    for number in range(6 if full_size else 4):
        (folder / f"{number}.png").write_bytes(data + bytes([number]))  # other contents, so that each is decoded
    assert len(data) < 1e6
    grown = int(run_probe("read_hostile.py", folder).split()[-1])
    print(f"six pictures of {side}x{side} in {len(data)} bytes each: {grown / 1e6:.0f} MB more at the peak")
    assert grown < 4 * side * side * 1.1 + slack
