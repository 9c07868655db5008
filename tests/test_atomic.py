"""Files that are there whole or not at all."""

import csv
import os
import signal
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Barrier

import psutil
import pytest
from children import killed_while_writing

from flux2_train.atomic import replacing, sweep, write_table, write_text

DAY = 24 * 60 * 60

OLD, NEW = "old\n", "new\r\n"
WRITER = """
import itertools, pathlib, sys
from flux2_train.atomic import write_text
for number in itertools.count():
    write_text(pathlib.Path(sys.argv[1]), str(number % 10) * 200_000)
"""
HALF_WRITER = """
import pathlib, sys, time
from flux2_train.atomic import replacing
with replacing(pathlib.Path(sys.argv[1])) as partial:
    partial.write_text("half")
    print(partial, flush=True)
    time.sleep(600)
"""
needs_kill = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")


@contextmanager
def half_writer(path):
    """A process that is writing ``path``, and the file that it writes to."""
    process = subprocess.Popen([sys.executable, "-c", HALF_WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        yield process, Path(process.stdout.readline().strip())
    finally:
        process.kill()
        process.wait()


def names(folder):
    return sorted(os.listdir(folder))


def test_a_file_takes_the_place_of_the_old_one_as_it_was_given(tmp_path):
    path = tmp_path / "file.txt"
    for text in (OLD, NEW):
        write_text(path, text)
        assert path.read_bytes() == text.encode()
    assert os.listdir(tmp_path) == ["file.txt"]


@pytest.mark.parametrize("durable", [False, True])
def test_until_the_end_the_old_one_stands(tmp_path, durable):
    path = tmp_path / "file.txt"
    write_text(path, OLD)
    with replacing(path, durable) as partial:
        partial.write_text(NEW)
        assert path.read_text() == OLD and partial.parent == path.parent
    assert path.read_bytes() == NEW.encode()


@pytest.mark.parametrize("written", [False, True])
def test_what_fails_leaves_the_old_one_and_nothing_else(tmp_path, written):
    path = tmp_path / "file.txt"
    write_text(path, OLD)
    with pytest.raises(ZeroDivisionError), replacing(path, durable=True) as partial:
        if written:
            partial.write_text("half")
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == ["file.txt"] and path.read_text() == OLD


@needs_kill
def test_a_process_that_is_killed_while_it_writes_leaves_a_whole_file(tmp_path):
    path = tmp_path / "file.txt"
    for _ in range(5):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)])
        while not path.exists():
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        text = path.read_text()
        assert len(text) == 200_000 and len(set(text)) == 1
        path.unlink()
        sweep(tmp_path)
        assert names(tmp_path) == []


@needs_kill
def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    write_text(tmp_path / "lora.safetensors", "a LoRA")
    for name in (".lora.safetensors.partial", "lora.safetensors.partial", "lora.12345.partial", "part.safetensors"):
        (tmp_path / name).write_text("another program's")
        os.utime(tmp_path / name, (0, 0))
    (tmp_path / "folder").mkdir()
    before = names(tmp_path)
    inner = killed_while_writing(tmp_path / "folder" / "lora.safetensors")
    killed_while_writing(tmp_path / "lora_2.safetensors")
    assert len(names(tmp_path)) == len(before) + 1
    sweep(tmp_path)
    assert names(tmp_path) == before and inner.exists()


@needs_kill
def test_what_a_living_process_writes_is_not_removed(tmp_path):
    path = tmp_path / "lora.safetensors"
    with half_writer(path) as (process, theirs), replacing(path) as mine:
        mine.write_text(NEW)
        sweep(tmp_path)
        assert theirs.exists() and mine.exists() and psutil.pid_exists(process.pid)
    assert path.read_bytes() == NEW.encode()


@needs_kill
def test_what_another_computer_may_be_writing_is_removed_after_a_day(tmp_path):
    """On a shared folder a process of that number need not be one that this computer can see."""
    partial = killed_while_writing(tmp_path / "lora.safetensors")
    table, dash, numbers = partial.name.removeprefix(".lora.safetensors.").partition("-")
    others = partial.with_name(f".lora.safetensors.{'0' * len(table)}{dash}{numbers}")
    before = partial.with_name(f".lora.safetensors.{numbers.partition('-')[0]}.partial")  # as older versions wrote it
    partial.unlink()
    for path in (others, before):
        path.write_text("half")
    for age, stay in ((0, 2), (DAY - 600, 2), (DAY + 600, 0)):
        for path in (others, before):
            if path.exists():
                os.utime(path, (time.time() - age,) * 2)
        sweep(tmp_path)
        assert len(names(tmp_path)) == stay


def test_a_folder_that_is_not_there_or_is_none_has_nothing_to_remove(tmp_path):
    (tmp_path / "file").write_text("x")
    sweep(tmp_path / "nowhere")
    sweep(tmp_path / "file")
    assert names(tmp_path) == ["file"]


def test_two_threads_write_one_file_at_once(tmp_path):
    path, barrier = tmp_path / "file.txt", Barrier(2)

    def write(text):
        with replacing(path) as partial:
            partial.write_text(text)
            barrier.wait(60)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, ("one", "two")))
    assert path.read_text() in ("one", "two") and names(tmp_path) == ["file.txt"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows flushes no folder")
def test_the_folder_is_flushed_after_the_file_has_its_name(tmp_path, monkeypatch):
    flushed, flush, path = [], os.fsync, tmp_path / "file.txt"

    def noted(handle):
        found = os.fstat(handle)
        flushed.append((stat.S_ISDIR(found.st_mode), found.st_ino, path.exists()))
        flush(handle)

    monkeypatch.setattr(os, "fsync", noted)
    write_text(path, OLD)
    assert flushed == []
    path.unlink()
    with replacing(path, durable=True) as partial:
        partial.write_text(NEW)
    assert flushed == [(False, path.stat().st_ino, False), (True, tmp_path.stat().st_ino, True)]


def test_a_table_is_read_back_by_any_reader(tmp_path):
    rows = [["image", "reason"], ['a "b", c.png', "two\nlines"], ["ä", ""]]
    write_table(tmp_path / "table.csv", rows)
    with (tmp_path / "table.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == rows
