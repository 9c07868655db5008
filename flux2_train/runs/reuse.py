"""Reuse an identical finished run: its results are read from its folder, and nothing is trained."""

from __future__ import annotations

from pathlib import Path

from .. import safetensors_header
from ..adapters.header import Tensors, opened_lora
from ..settings import earlier
from ..settings.base import plain
from ..train.trainer import Trainer
from . import resume
from .folder import FINISHED, RunFolder
from .graph_job import job_of
from .results import Results
from .writers.best_lora import result_file

COMPARED = ("training", "previews", "held_out")  # sections of a job: new previews need a new run
WIRED = ("comfyui", "diffusers")  # formats whose files the graph can use as they are


def finished(trainer: Trainer, loras: Path, runs: Path) -> Results | None:
    """The results of the newest run of the trainer's name if it has finished and is identical, else ``None``.

    Settings, seed, data and model must be equal, and the LoRA file must still be the one that the run saved. The
    trainer then gets that run's history and adapters.
    """
    folder = RunFolder.last(runs, trainer.config.name)
    if folder is None or folder.is_held() or trainer.config.save.format not in WIRED:
        return None
    path = result_file(folder, loras, trainer.config.checkpoints.best)
    lora = _lora(path, trainer) if folder.about().get("status") == FINISHED else None
    last = resume.newest(folder) if lora else None
    if last is None or not _is_same(last, trainer):
        return None
    if resume.put(trainer, last.state):
        return None
    return Results(lora, path, folder.path, lora.header.get("flux2_train.certificate", ""))


def _is_same(last: resume.Resumption, trainer: Trainer) -> bool:
    about, now = last.checkpoint.about, plain(job_of(trainer))
    same_settings = all(about.job.get(section) == now[section] for section in COMPARED)
    same_data = about.dataset == trainer.dataset.fingerprint
    changed = [*trainer.changes] and about.job.get("changes") != now["changes"]
    return same_settings and same_data and not changed and not list(resume.differences(about, trainer, own_seed=False))


def _lora(path: Path, trainer: Trainer) -> Tensors | None:
    """The LoRA file, ``None`` if it is gone or has other settings."""
    try:
        with safetensors_header.opened(path) as file:
            header = file.metadata() or {}
            if earlier.settings_of(header.get("flux2_train.config", "{}")).public != trainer.config.public:
                return None
            return opened_lora(file)
    except (OSError, ValueError):
        return None
