"""A base that two processes of a terminal share, with previews; and a pack that torchrun goes on with."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from comfy_server import free_port
from PIL import Image
from safetensors.torch import load_file
from support import options_for

from flux2_train.runs.folder import RunFolder
from flux2_train.runs.several.launch import command
from flux2_train.terminal.main import main

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
STEPS = 2


def write_job(place, name, **more):
    path = place / f"{name}.json"
    path.write_text(json.dumps({
        "model": {"flavour": "nano"}, "dataset": {"folder": "robot", "resolution": 64},
        "training": {"name": name, "steps": STEPS, "rank": 2, "learning_rate": 2e-3, "validation_items": 2, **more},
        "previews": {"prompts": [{"text": "zbot"}], "width": 64, "height": 64, "steps": 1, "every": 1},
        "output": {"loras": str(place / "loras"), "runs": str(place / "runs")},
    }))  # fmt: skip
    return path


def ran(line):
    """What a command line printed, without a GPU."""
    done = subprocess.run(line, cwd=ROOT, env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
                          capture_output=True, text=True, timeout=1200)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


def same(place, one, other):
    a, b = (load_file(place / "loras" / f"{name}.safetensors") for name in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_with_a_shared_base_losses_previews_and_lora_are_the_same_bits(nano, comfy_folders, tmp_path):
    options = f"--comfyui={options_for(comfy_folders)}"
    ran(command(2, ["train", str(write_job(tmp_path, "whole")), options], 1))
    said = ran(command(2, ["train", str(write_job(tmp_path, "shared", memory={"share_base": True})), options], 1))
    assert "shared by 2 processes" in said and same(tmp_path, "whole", "shared")
    runs = [RunFolder(tmp_path / "runs" / name) for name in ("whole", "shared")]
    names = [sorted(path.name for path in run.previews.iterdir()) for run in runs]
    assert names[0] == names[1] and len(names[0]) == 2 + STEPS
    for name in names[0]:
        first, second = (np.asarray(Image.open(run.previews / name)) for run in runs)
        assert np.array_equal(first, second), name


def test_a_pack_goes_on_in_two_processes_of_torchrun(nano, comfy_folders, tmp_path):
    assert main(["train", str(write_job(tmp_path, "cut", batch=2))]) == 0
    run = RunFolder(tmp_path / "runs" / "cut")
    assert main(["pack", str(run.path), "--to", str(tmp_path / "pack")]) == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", "2",
                "--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{free_port()}"]  # fmt: skip
    more = ["--set", "batch=1", "--set", f"steps={STEPS + 1}", f"--comfyui={options_for(comfy_folders)}"]
    packed = tmp_path / "pack" / "runs" / "cut"
    said = ran([*torchrun, "-m", "flux2_train", "resume", str(packed), *more])
    assert f"going on after step {STEPS} of {STEPS + 1}" in said and RunFolder(packed).about()["status"] == "finished"
    assert main(["resume", str(run.path), "--set", f"steps={STEPS + 1}"]) == 0
    ours, alone = (load_file(place / "loras" / "cut.safetensors") for place in (tmp_path / "pack", tmp_path))
    assert all((ours[name] - alone[name]).norm() < 1e-2 * alone[name].norm() for name in alone)  # rounded to bf16
