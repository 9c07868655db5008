"""The store on disk: whole entries or none, whatever is done to it."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from children import PROCESSES, PYTHONPATH, killed_while_writing
from fill_store import Means, fill
from pictures import picture, read
from PIL import Image
from safetensors.torch import load_file

from flux2_train.atomic import replacing
from flux2_train.data.cache import cache_latents
from flux2_train.data.index import SETTLED_SECONDS
from flux2_train.data.store import Store, narrow
from flux2_train.errors import UserError

KEY = "ab" + "0" * 30


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Thirty pictures of three shapes."""
    place, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(30):
        size = ((256, 256), (320, 208), (208, 320))[number % 3]
        Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), np.uint8)).save(place / f"{number:02}.png")
        (place / f"{number:02}.txt").write_text("x")
    return place


def has(store, key) -> bool:
    return not store.missing([key])


def contents(place: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(place)): p.read_bytes()
        for p in sorted(place.rglob("*"))
        if "index" not in p.name and p.is_file()
    }


@pytest.mark.parametrize("value", [
    torch.randn(1, 128, 3, 2), torch.randn(1, 7, 96).bfloat16().float(), torch.randn(4).half(), torch.zeros(1, 0, 5),
    torch.tensor([float("nan"), float("inf"), -0.0]), torch.randn(5, dtype=torch.float64),
], ids=["fp32", "bf16 values", "fp16", "empty", "special", "fp64"])  # fmt: skip
def test_what_is_read_is_what_was_written(store, value):
    store.write(KEY, value)
    back = store.read(KEY)
    assert back.dtype == value.dtype and back.shape == value.shape
    assert back.numpy().tobytes() == value.numpy().tobytes()
    assert has(store, KEY) and not has(store, "cd" + "0" * 30)


def test_values_that_fit_into_bf16_take_half_the_room(store):
    exact = torch.randn(1, 100, 96)
    assert narrow(exact) is exact
    short = exact.bfloat16().float()
    store.write(KEY, short)
    assert load_file(store.path(KEY))["value"].dtype == torch.bfloat16
    assert store.path(KEY).stat().st_size < 100 * 96 * 2 + 300


DAMAGES = {
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "one bit": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "header": lambda data: b"\xff" * 8 + data[8:],
    "garbage": lambda data: os.urandom(len(data)),
    "longer": lambda data: data + b"x",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_made_again(folder, tmp_path, damage):
    _, made = fill(folder, tmp_path)
    assert made.encoded == 30
    before = contents(tmp_path)
    path = tmp_path / sorted(before)[7]
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    _, made = fill(folder, tmp_path)
    assert made.encoded == 1 and contents(tmp_path) == before


def test_damage_that_shows_only_when_training_reads_is_said_and_mended(store):
    """Bits that a disk lost leave the file's dates as they were."""
    store.write(KEY, torch.randn(1, 128, 2, 2))
    store.flush()
    path, stat = store.path(KEY), store.path(KEY).stat()
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(data)
    state = (path.stat().st_size, path.stat().st_mtime_ns, path.stat().st_ctime_ns, path.stat().st_ino)
    with store.index.writing() as connection:
        connection.execute("UPDATE files SET size = ?, mtime = ?, ctime = ?, inode = ?", state)
    assert has(store, KEY) and stat.st_size == state[0]
    changes = store.index.changes()
    with pytest.raises(UserError, match="was damaged .* and has been removed; queue again"):
        store.read(KEY)
    assert not has(store, KEY) and store.index.changes() == changes + 1
    with pytest.raises(UserError, match="no longer in the cache"):
        store.read(KEY)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_said_and_leaves_nothing_broken(store):
    store.path(KEY).parent.mkdir()
    with pytest.raises(ZeroDivisionError), replacing(store.path(KEY)) as partial:
        raise ZeroDivisionError  # only to learn what is written to, which is the same each time
    partial.symlink_to("/dev/full")
    with pytest.raises(UserError, match="The disk is full: .* choose another place for it; what is done"):
        store.write(KEY, torch.randn(1, 128, 2, 2))
    assert not has(store, KEY) and not list(store.folder.rglob("*.partial"))
    store.write(KEY, torch.zeros(1))
    assert has(store, KEY)


@pytest.mark.skipif(not os.path.isdir("/sys"), reason="needs a folder that nobody may write")
def test_a_read_only_folder_is_said(store):
    with pytest.raises(UserError, match="index /sys/.* cannot be written .* choose another place for the cache"):
        Store(Path("/sys/flux2_train_cache"))
    (store.folder / KEY[:2]).write_text("a file where a folder should be")
    with pytest.raises(UserError, match="cannot be written .*; make the folder writable"):
        store.write(KEY, torch.zeros(1))


def start(folder, place):
    process = subprocess.Popen(
        [sys.executable, str(PROCESSES / "fill_store.py"), str(folder), str(place)],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": PYTHONPATH},
    )  # fmt: skip
    assert process.stdout.readline().strip() == "ready"
    return process


def finish(process) -> int:
    """How many entries a process made by its end."""
    said = process.communicate()[0].splitlines()
    assert process.returncode == 0
    return int(said[-1])


@pytest.mark.long
def test_a_process_killed_at_any_moment_leaves_a_store_that_is_finished_later(folder, tmp_path, full_size):
    """Killed 3 times (50 with --all) at random moments of its work, then resumed: as if nothing had happened."""
    time.sleep(SETTLED_SECONDS)  # pictures that have just been written are not taken for known
    assert finish(start(folder, tmp_path / "whole")) == 30
    expected, rng = contents(tmp_path / "whole"), random.Random(0)
    place, caught = tmp_path / "killed", []
    for _ in range(50 if full_size else 3):
        for path in sorted(place.glob("??/*.safetensors"))[rng.randrange(20) :]:  # so that it has something to do
            path.unlink()
        process = start(folder, place)
        for _ in range(rng.randrange(1, 9)):
            process.stdout.readline()
        time.sleep(rng.random() * 0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        entries = {str(p.relative_to(place)): p.read_bytes() for p in place.glob("??/*.safetensors")}
        assert all(expected[name] == data for name, data in entries.items())  # no entry is ever broken
        caught.append(len(entries))
    assert len(set(caught)) > 1 and min(caught) < 30  # in the middle of its work, at different moments
    finish(start(folder, place))
    assert contents(place) == expected  # nothing half written is left either
    ours, theirs = Store(place), Store(tmp_path / "whole")
    query = "SELECT path, size FROM files ORDER BY path"
    assert ours.index.rows(query) == theirs.index.rows(query)
    assert ours.index.rows("SELECT * FROM uses ORDER BY 1, 2") == theirs.index.rows("SELECT * FROM uses ORDER BY 1, 2")
    assert finish(start(folder, place)) == 0


@pytest.mark.long
def test_two_processes_fill_one_store(folder, tmp_path):
    both = [start(folder, tmp_path / "both") for _ in range(2)]
    made = [finish(process) for process in both]
    assert 30 <= sum(made) <= 60
    fill(folder, tmp_path / "alone")
    assert contents(tmp_path / "both") == contents(tmp_path / "alone")


def test_half_written_entries_go_when_their_process_is_gone(store):
    """Which files those are is test_atomic.py's; here that a store removes them when it is opened."""
    store.path(KEY).parent.mkdir()
    half = killed_while_writing(store.path(KEY))
    older = store.path(KEY).with_name(f"{KEY}.somehost-12345-0.partial")  # as older versions wrote it
    foreign = store.path(KEY).with_name("something.partial")  # not ours, whatever it is
    for path in (older, foreign):
        path.write_bytes(b"x")
        os.utime(path, (0, 0))
    with replacing(store.path(KEY)) as writing:
        writing.touch()
        Store(store.folder)
        assert writing.exists() and foreign.exists() and not half.exists() and not older.exists()


def test_pruning_takes_what_no_data_set_uses(tmp_path):
    store = Store(tmp_path / "store")
    for name in ("one", "two"):
        picture(tmp_path / name / "a.png", colour=(name == "one" and "red") or "blue")
        cache_latents(read(tmp_path / name), Means(), store)
    assert (store.sizes().entries, store.sizes().unused_entries) == (2, 0)
    picture(tmp_path / "one" / "a.png", colour="green")
    latents, _ = cache_latents(read(tmp_path / "one"), Means(), store)
    sizes = store.prune()
    assert (sizes.entries, sizes.unused_entries) == (3, 1) and sizes.unused_size > 0
    assert store.sizes().entries == 2 and latents.latents[latents.dataset.items[0].view].shape == (1, 128, 4, 4)
    (tmp_path / "two").rename(tmp_path / "gone")
    assert store.prune().unused_entries == 1
    assert store.prune(older_than_days=1).unused_entries == 0
    assert store.prune(older_than_days=0).unused_entries == 1 and store.sizes().entries == 0


def test_a_limit_keeps_the_store_small_and_what_is_in_use(tmp_path):
    store, size = Store(tmp_path / "store"), None
    for name, colour in (("old", "red"), ("older", "blue"), ("now", "green")):
        picture(tmp_path / name / "a.png", colour=colour)
        limit = 0 if size is None else 2.5 * size / 1e9
        latents, made = cache_latents(read(tmp_path / name), Means(), store, limit_gb=limit)
        size = size or store.sizes().size
    assert made.removed == 1 and store.sizes().entries == 2
    assert latents.latents[latents.dataset.items[0].view] is not None
    _, made = cache_latents(read(tmp_path / "old"), Means(), store, limit_gb=1e-9)
    assert (made.encoded, made.removed, store.sizes().entries) == (1, 2, 1)  # "old" went, and only it stays now


def test_what_is_in_the_store_does_not_grow_the_process(tmp_path, full_size):
    """Reading everything leaves resident memory where it was."""
    store, count = Store(tmp_path), 400
    for number in range(count):
        store.write(f"{number:032x}", torch.randn(1, 128, 32, 32))
    process = psutil.Process()
    for number in range(20):
        store.read(f"{number:032x}")
    before = process.memory_info().rss
    for number in range(count):
        store.read(f"{number:032x}").sum()
    assert process.memory_info().rss - before < 0.2 * count * 128 * 32 * 32 * 4
