"""The LoRAs that one run has saved over time: on the way, when it was interrupted, and before it was made longer."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..adapters import files
from ..adapters.peft_config import FILE
from ..train.trainer import Trainer
from .folder import RunFolder

STOPPED_LORAS = "stopped"  # in run.json: the files of interruptions, below the folder of LoRAs


def new_folder(trainer: Trainer, loras: Path, runs: Path) -> RunFolder:
    """Make a folder for a run, with a name that is free for its LoRA too."""

    def taken(name: str) -> bool:
        return files.path_of(loras, name, trainer.config.save.format).exists()

    return RunFolder.create(runs, trainer.config.name, taken)


def note_stopped(folder: RunFolder, loras: Path, saved: Path) -> None:
    """Remember the LoRA of an interruption, so that ``remove_stopped`` finds it."""
    names = folder.about().get(STOPPED_LORAS, [])
    folder.note(**{STOPPED_LORAS: [*names, saved.relative_to(loras).as_posix()]})


def remove_stopped(folder: RunFolder, loras: Path) -> None:
    """Remove the LoRAs of interruptions: the run has finished, and its last one holds all that they hold."""
    stopped = folder.about().get(STOPPED_LORAS, [])
    for name in stopped:
        remove(folder, loras, name)
    if stopped:
        folder.note(**{STOPPED_LORAS: []})


def remove(folder: RunFolder, loras: Path, name: str) -> None:
    """Remove a LoRA of a step, or the best one, that run.json notes. A name of another form is left alone."""
    if re.fullmatch(rf"{re.escape(folder.name)}_(step\d+|best)(_\d+)?(\.safetensors|/{re.escape(FILE)})", name):
        with suppress(OSError):  # somebody else has removed it, or it is open
            files.remove(loras / name)


def set_aside(folder: RunFolder, loras: Path, format: str) -> Path | None:
    """Rename the LoRA of a finished run that was made longer to ``NAME_step12``, so that its name is free again."""
    path, name = files.path_of(loras, folder.name, format), folder.about().get("lora", "")
    tensors = loras / name
    if not name or tensors not in (path, path / FILE) or not tensors.is_file():
        return None
    kept = files.free_path(loras, f"{folder.name}_step{_steps_of(tensors)}", format)
    path.replace(kept)
    return kept


def _steps_of(path: Path) -> str:
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("ss_steps", "")
    except SafetensorError:
        return ""
