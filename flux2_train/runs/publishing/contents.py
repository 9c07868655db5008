"""Fills the folder that is published: the LoRA, a model card, pictures before and after, the loss curve."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from ...atomic import replacing, write_text
from ...data.images import load_rgb
from ...errors import UserError
from ...names import counted, shown
from ..folder import RunFolder
from ..writers.png import write_png
from .card import card
from .facts import Facts, facts_of

CARD, PICTURES, CURVE = "README.md", "images", "loss.png"
OF_PEFT = ("adapter_model.safetensors", "adapter_config.json")
PATTERNS = (CARD, "*.safetensors", OF_PEFT[1], f"{PICTURES}/*.png")  # of what goes to a hub


@dataclass(frozen=True)
class Published:
    """``card_kept``: there was a model card already, which somebody may have changed; it stayed as it was."""

    folder: Path
    files: tuple[str, ...]
    size: int
    card_kept: bool

    def __str__(self) -> str:
        kept = f" {CARD} was there and stays as it is; delete it to have it written anew." if self.card_kept else ""
        return f"{self.folder}: {counted(len(self.files), 'file')}, {self.size / 1e6:.1f} MB.{kept}"


def publish(folder: RunFolder, loras: Path, to: Path, lora: str = "") -> Published:
    """Write what is published of a run into the folder ``to``.

    ``loras`` is the folder of LoRA files; ``lora`` is the name of one in place of the one that the run saved last.
    Raises UserError if the run has saved none, if it is not there, and if something in ``to`` is not of this kind.
    """
    facts = facts_of(folder)
    source = _lora_of(folder, loras, lora)
    written = _copied(source, _prepared(to))
    pictures = _pictures(facts, to / PICTURES)
    curve = _curve(folder, to / PICTURES)
    kept = (to / CARD).exists()
    if not kept:
        file = "" if source.is_dir() else written[0]
        write_text(to / CARD, card(facts, file or "./", pictures, curve))
    files = (*written, *(name for pair in pictures for name in pair), *([curve] if curve else []), CARD)
    return Published(to, files, sum((to / name).stat().st_size for name in files), kept)


def _lora_of(folder: RunFolder, loras: Path, named: str) -> Path:
    name = named or folder.about().get("lora")
    if not isinstance(name, str) or not name:
        raise UserError(
            f"The run {folder.name} has saved no LoRA yet. Let it finish, stop it, or write the LoRA of a checkpoint: "
            f"python -m flux2_train convert {folder.name}:last {folder.name}_last.safetensors."
        )
    path = loras / name
    if path.parent != loras or not (path.is_file() or all((path / each).is_file() for each in OF_PEFT)):
        raise UserError(f"The LoRA {shown(name)} is no longer in {loras}; name another one of this run.")
    return path


def _prepared(to: Path) -> Path:
    """The folder, made if it is not there. Raises UserError for one that holds something else."""
    to.mkdir(parents=True, exist_ok=True)
    known = {CARD, PICTURES, *OF_PEFT}
    others = [path.name for path in to.iterdir() if path.name not in known and path.suffix != ".safetensors"]
    if others:
        raise UserError(f"{to} holds other things, {shown(others[0])} first: name a new folder.")
    for old in [*to.glob("*.safetensors"), *(to / PICTURES).glob("*.png")]:
        old.unlink()
    return to


def _copied(source: Path, to: Path) -> list[str]:
    """Copy the LoRA, a file or peft's two; returns the names."""
    files = [source / name for name in OF_PEFT] if source.is_dir() else [source]
    for path in files:
        with replacing(to / path.name) as partial:
            shutil.copyfile(path, partial)
    return [path.name for path in files]


def _pictures(facts: Facts, folder: Path) -> list[tuple[str, str]]:
    """Write the examples without what ComfyUI and this pack note in pictures; returns their names from ``to``."""
    folder.mkdir(exist_ok=True)
    names = []
    for number, example in enumerate(facts.examples, 1):
        pair = f"{number}_base.png", f"{number}_lora.png"
        for name, picture in zip(pair, (example.base, example.painted), strict=True):
            write_png(picture, folder / name)
        names.append(tuple(f"{PICTURES}/{name}" for name in pair))
    return names


def _curve(run: RunFolder, folder: Path) -> str:
    if not run.plot.is_file():
        return ""
    write_png(load_rgb(run.plot), folder / CURVE)
    return f"{PICTURES}/{CURVE}"
