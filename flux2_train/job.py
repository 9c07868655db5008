"""A training job as one file: what a graph says to the trainer, so that a terminal can run the same.

JSON, or TOML where Python reads it. Every setting that is left out has its default, as in the nodes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from . import typed
from .config import TrainConfig
from .data.cache import EmbedSettings, LatentSettings
from .data.request import Request
from .errors import UserError
from .flavours import Flux2Files
from .validation import ValidationConfig

VERSION = 1
MAX_BYTES = 1 << 24
SECTIONS = ("version", "model", "dataset", "embeds", "latents", "training", "validation", "held_out", "output",
            "unknown")  # fmt: skip


@dataclass(frozen=True)
class Output:
    """Folders for the LoRA and for the run's plot, losses and report; empty for ComfyUI's own."""

    loras: str = ""
    runs: str = ""


@dataclass(frozen=True)
class Job:
    """One training run. ``validation`` is what is painted meanwhile, ``held_out`` the data set whose loss is measured.

    ``unknown`` says what a graph had that no file can hold; such a job is not run.
    """

    dataset: tuple[Request, ...]
    version: int = VERSION
    model: Flux2Files = field(default_factory=Flux2Files)
    embeds: EmbedSettings = field(default_factory=EmbedSettings)
    latents: LatentSettings = field(default_factory=LatentSettings)
    training: TrainConfig = field(default_factory=TrainConfig)
    validation: ValidationConfig | None = None
    held_out: tuple[Request, ...] = ()
    output: Output = field(default_factory=Output)
    unknown: tuple[str, ...] = ()

    def __post_init__(self):
        if self.version != VERSION:
            raise UserError(f"version is {self.version}; this pack reads version {VERSION}.")
        if not self.dataset and not self.unknown:
            raise UserError("dataset is empty; name at least one folder.")

    def require_known(self) -> None:
        """Raise UserError if the graph had something that is not in this file."""
        if self.unknown:
            raise UserError(
                f"This job is not all that was in the graph: {'; '.join(self.unknown)}. Run it in ComfyUI, or add "
                "--set unknown=[] to train without."
            )

    def to_json(self) -> str:
        """The file's text, every setting in it."""
        return json.dumps(typed.plain(self), indent=2) + "\n"


def load(path: Path, settings: Iterable[str] = ()) -> Job:
    """The job in a file, with ``section.name=value`` settings in place of the file's.

    Raises UserError naming the file and what is wrong in it.
    """
    values = _parse(path)
    try:
        if isinstance(values.get("dataset"), dict):  # one folder needs no list
            values["dataset"] = [values["dataset"]]
        for setting in settings:
            _set(values, setting)
        return typed.read(Job, values, "")
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _parse(path: Path) -> dict:
    if not path.is_file():
        raise UserError(f"There is no file {path}; name a job file (LoRA Trainer writes job.json into its run folder).")
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path} is {path.stat().st_size} bytes long; a job file may have {MAX_BYTES}.")
    try:
        text = path.read_text(encoding="utf-8-sig")
        values = _toml(path)(text) if path.suffix.lower() == ".toml" else json.loads(text)
    except ValueError as error:  # of JSON, of TOML and of UTF-8 alike
        raise UserError(f"{path} cannot be read: {error}.") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds {type(values).__name__}; a job is an object with {', '.join(SECTIONS[1:-1])}.")
    return values


def _toml(path: Path):
    try:
        import tomllib
    except ImportError:
        raise UserError(f"{path}: this Python cannot read TOML (3.11 can); write the job as JSON.") from None
    return tomllib.loads


def _set(values: dict, setting: str) -> None:
    """Put one ``a.b.c=value`` into nested values; a name without a section is one of ``training``."""
    place, equals, text = setting.partition("=")
    keys = place.strip().split(".")
    if not equals or not all(keys):
        raise UserError(f"--set {setting!r} is not NAME=VALUE, such as training.steps=500.")
    if len(keys) == 1 and keys[0] not in SECTIONS:
        keys.insert(0, "training")
    node = values
    for key in keys[:-1]:
        node = _inside(node, key, place)
    if isinstance(node, list):
        node = node[0] if len(node) == 1 else node
    if not isinstance(node, dict):
        raise UserError(f"--set {place}: there is no such place in the job.")
    node[keys[-1]] = _value(text)


def _inside(node, key: str, place: str):
    if isinstance(node, list):
        if key.isdigit() and int(key) < len(node):
            return node[int(key)]
        if len(node) == 1:
            return _inside(node[0], key, place)
    if isinstance(node, dict):
        return node.setdefault(key, {})
    raise UserError(f"--set {place}: there is no such place in the job.")


def _value(text: str):
    try:
        return json.loads(text)
    except ValueError:
        return text
