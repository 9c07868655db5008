"""Files that are there whole or not at all."""

import csv
import os
import signal
import subprocess
import sys

import pytest

from flux2_train.whole import whole, write_table, write_text

OLD, NEW = "old\n", "new\r\n"
WRITER = """
import itertools, pathlib, sys
from flux2_train.whole import write_text
for number in itertools.count():
    write_text(pathlib.Path(sys.argv[1]), str(number % 10) * 200_000)
"""


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
    with whole(path, durable) as partial:
        partial.write_text(NEW)
        assert path.read_text() == OLD and partial.parent == path.parent
    assert path.read_bytes() == NEW.encode()


@pytest.mark.parametrize("written", [False, True])
def test_what_fails_leaves_the_old_one_and_nothing_else(tmp_path, written):
    path = tmp_path / "file.txt"
    write_text(path, OLD)
    with pytest.raises(ZeroDivisionError), whole(path, durable=True) as partial:
        if written:
            partial.write_text("half")
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == ["file.txt"] and path.read_text() == OLD


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
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


def test_a_table_is_read_back_by_any_reader(tmp_path):
    rows = [["image", "reason"], ['a "b", c.png', "two\nlines"], ["ä", ""]]
    write_table(tmp_path / "table.csv", rows)
    with (tmp_path / "table.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == rows
