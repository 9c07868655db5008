"""Run folders as training writes them, made without training: for what lists, compares and removes them."""

from __future__ import annotations

import json
import math
from pathlib import Path

from PIL import Image

from flux2_train.runs.folder import FINISHED, RunFolder
from flux2_train.settings.base import plain
from flux2_train.settings.dataset_folder import DatasetSettings
from flux2_train.settings.job import Job
from flux2_train.settings.model import ModelSettings
from flux2_train.settings.training import TrainingSettings


def make_run(
    runs: Path, name: str, steps: int = 100, status: str = FINISHED, color: str = "teal", scale: float = 1, **training
) -> Path:
    """The folder of a run of nano with its job, state, losses, two previews and a checkpoint's name. Returns it."""
    folder = RunFolder(runs / name)
    for each in (folder.path, folder.previews, folder.checkpoints):
        each.mkdir(parents=True)
    config = TrainingSettings(**{"name": name, "steps": steps, **training})
    data = (DatasetSettings(Path("robot"), resolution=64, trigger="zbot"),)
    job = Job(data, model=ModelSettings(flavour="nano"), training=config)
    folder.job.write_text(json.dumps(plain(job)))
    folder.note(name=name, status=status, step=steps, total=steps, began="2026-01-02T03:04:05Z",
                ended="2026-01-02T03:14:05Z", lora=f"{name}.safetensors", why="", resumed=[])  # fmt: skip
    write_losses(folder.losses, steps, scale)
    for number, each in ((0, "gray"), (steps, color)):
        Image.new("RGB", (96, 64), each).save(folder.previews / f"step_{number:06d}_1.png")
    Image.new("RGB", (96, 64), "gray").save(folder.previews / "base_1.png")
    (folder.checkpoints / f"step_{steps:08d}.safetensors").write_bytes(b"x" * 1000)
    return folder.path


def loss(step: int) -> float:
    """The smoothed loss of such a run."""
    return 0.1 + 0.3 / (1 + step / 50)


def write_losses(path: Path, steps: int, scale: float = 1) -> None:
    """loss.csv of so many steps; the losses are ``scale`` times those of ``loss``."""
    rows = (
        f"{s},{scale * loss(s) * (1 + 0.2 * math.sin(9 * s))},{scale * loss(s)},0.0,0.5,0.0001"
        for s in range(1, steps + 1)
    )
    path.write_text("\r\n".join(["step,loss,smoothed,preservation,seconds,learning_rate", *rows]) + "\r\n")
