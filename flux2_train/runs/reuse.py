"""The same graph once more after its run has finished: nothing to train."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..adapters.header import Tensors
from ..settings import earlier
from ..settings.base import plain
from ..train.trainer import Trainer
from . import resume
from .folder import FINISHED, RunFolder
from .jobs import job_of
from .results import Results

ASKED = ("training", "previews", "held_out")  # of a job: who wants other previews wants the run again
WIRED = ("comfyui", "diffusers")  # formats whose file is what goes through the graph


def finished(trainer: Trainer, loras: Path, runs: Path) -> Results | None:
    """The results of the last run of that name if it has finished and was asked for exactly so, else ``None``.

    The trainer then holds that run's history and adapters. Settings, seed, data and model must be equal, and the LoRA
    still be the one that run has saved.
    """
    folder = RunFolder.last(runs, trainer.config.name)
    if folder is None or folder.is_held() or trainer.config.save.format not in WIRED:
        return None
    about = folder.about()
    lora = _lora(loras / str(about.get("lora", "")), trainer) if about.get("status") == FINISHED else None
    found = resume.newest(folder) if lora else None
    if found is None or not _is_same(found, trainer):
        return None
    trainer.load_state_dict(found.state)
    return Results(lora, loras / about["lora"], folder.path, lora.header.get("flux2_train.certificate", ""))


def _is_same(found: resume.Resumption, trainer: Trainer) -> bool:
    about, now = found.checkpoint.about, plain(job_of(trainer))
    same_settings = all(about.job.get(section) == now[section] for section in ASKED)
    same_data = about.dataset == trainer.dataset.fingerprint
    return same_settings and same_data and not list(resume.differences(about, trainer, own_seed=False))


def _lora(path: Path, trainer: Trainer) -> Tensors | None:
    """The LoRA file, ``None`` where it is gone or another one."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if earlier.settings_of(header.get("flux2_train.config", "{}")) != trainer.config:
                return None
            return Tensors({name: file.get_tensor(name) for name in file.keys()}, header)  # noqa: SIM118
    except (SafetensorError, OSError, ValueError):
        return None
