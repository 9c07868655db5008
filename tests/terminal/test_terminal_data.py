"""``dataset check`` and ``cache prune`` as a person types them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fill_store import fill
from pictures import picture
from PIL import Image

from flux2_train.terminal.main import main

ROOT = Path(__file__).resolve().parents[2]


def flux2_train(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "flux2_train", *map(str, arguments)], cwd=ROOT, env=dict(os.environ),
        capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.long
def test_dataset_check_reports_and_draws_without_any_model(tmp_path):
    picture(tmp_path / "data" / "a.png", (96, 64))
    (tmp_path / "data" / "b.png").write_bytes(b"broken")
    done = flux2_train("dataset", "check", tmp_path / "data", "--resolution", 64, "--trigger", "zbot", "--sheet",
                       tmp_path / "sheet.png")  # fmt: skip
    assert done.returncode == 0, done.stderr
    for said in ("1 image x 1 from data", "80x48: 1", "steps per epoch: 1 at batch 1", "skipped b.png cannot be read"):
        assert said in done.stdout
    assert Image.open(tmp_path / "sheet.png").width > 100


def test_dataset_check_of_a_folder_that_is_not_there_fails(tmp_path, capsys):
    assert main(["dataset", "check", str(tmp_path / "nowhere")]) == 1
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("error: There is no folder")


def test_dataset_check_takes_a_jobs_settings(tmp_path, typed):
    for name in "ab":
        picture(tmp_path / "data" / f"{name}.png", (96, 64), "red" if name == "a" else "blue")
    crop = {"aspect": "square", "flip_x": True}
    folder = {"folder": str(tmp_path / "data"), "resolution": 64, "crop": crop, "source": {"repeats": 2}}
    (tmp_path / "job.json").write_text(json.dumps({"dataset": folder}))
    done = typed("dataset", "check", tmp_path / "job.json", "--batch", 2)
    assert done.returncode == 0, done.stderr
    for said in ("4 images x 2 from data", "64x64: 4", "steps per epoch: 4 at batch 2"):
        assert said in done.stdout


def test_cache_prune_removes_what_is_unused_and_tells_sizes(tmp_path, typed):
    picture(tmp_path / "data" / "a.png", (256, 256))
    fill(tmp_path / "data", tmp_path / "store")
    picture(tmp_path / "data" / "a.png", (256, 256), "blue")
    fill(tmp_path / "data", tmp_path / "store")
    done = typed("cache", "prune", "--folder", tmp_path / "store")
    assert done.returncode == 0, done.stderr
    assert "2 entries" in done.stdout and "removed 1, " in done.stdout
    assert "1 entries" in typed("cache", "prune", "--folder", tmp_path / "store").stdout
    assert "no cache" in typed("cache", "prune", "--folder", tmp_path / "elsewhere").stdout
