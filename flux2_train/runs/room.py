"""Looks before the first step whether the LoRA and the checkpoints can be written at the end."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..adapters import files, write
from ..atomic import apart
from ..bounded import reason
from ..errors import UserError
from ..train.trainer import Trainer

MEGABYTE = 10**6
NUMBER = "_9999"  # behind the name, where it is taken
DRAFTS = 2  # of the LoRA lie on the disk at a time, while the second one is written with the certificate


def require_room(trainer: Trainer, loras: Path, runs: Path) -> list[str]:
    """Warnings about the run's folder. Raises UserError if the LoRA's folder cannot be written or has no room.

    The size of the LoRA is that of the trained numbers in its precision; a checkpoint holds them in fp32 about three
    times (weights and the optimizer's two moments), and the moving average.
    """
    numbers = sum(parameter.numel() for parameter in trainer.adapters.trainable())
    lora = DRAFTS * numbers * write.DTYPES[trainer.config.save.precision].itemsize + MEGABYTE
    place = _existing(loras)
    _require_writable(trainer, loras, place)
    free = shutil.disk_usage(place).free
    if free < lora:
        raise UserError(
            f"The LoRA needs {_megabytes(lora)} MB while it is saved, and {loras} has {_megabytes(free)} MB free: make "
            "room there before the run, or lower the rank."
        )
    checkpoints, least = trainer.config.checkpoints, numbers * 4 * (4 if trainer.ema else 3)
    kept = (checkpoints.keep + 1 + checkpoints.keep_best) if checkpoints.keep else 0
    free = shutil.disk_usage(_existing(runs)).free
    if free < kept * least:
        return [
            f"The checkpoints need {_megabytes(kept * least)} MB, and {runs} has {_megabytes(free)} MB free: an "
            "interrupted run may not be able to go on. Make room, or lower 'keep' of Checkpoints."
        ]
    return []


def _require_writable(trainer: Trainer, loras: Path, place: Path) -> None:
    """Raise UserError unless a file of the longest name that this LoRA can get may be made in its folder."""
    name = files.path_of(Path(), f"{trainer.config.name}{NUMBER}_step{trainer.total}").name
    try:
        with apart(place / name) as folder:
            (folder / name).touch()
    except OSError as error:
        raise UserError(
            f"The LoRA {trainer.config.name} could not be saved in {loras} ({reason(error)}): make that a folder that "
            "can be written, or choose a shorter name, before the run."
        ) from error


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(place for place in (folder, *folder.absolute().parents) if place.exists())


def _megabytes(size: int) -> str:
    return f"{size / MEGABYTE:.0f}"
