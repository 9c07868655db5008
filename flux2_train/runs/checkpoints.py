"""Checkpoints of a run: one safetensors file each, with JSON in its header. A file is complete or does not exist."""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..atomic import apart, move
from ..settings import earlier
from ..train import packing

VERSION = 2
META = "flux2_train.checkpoint"
SUM = "flux2_train.crc32"  # the checksum of META's text, in which the tensors' checksum stands
ENDING = ".safetensors"


class DamagedCheckpoint(Exception):
    """A checkpoint's file does not hold what was written."""


@dataclass(frozen=True)
class About:
    """What a checkpoint says about itself without its tensors.

    ``job`` is the run's job as ``job.Job`` writes it, ``dataset`` the fingerprint of images and captions, ``step_size``
    the samples per step of all processes, ``validation`` the validation loss at ``step`` if it was measured there.
    """

    step: int
    total: int
    job: dict
    dataset: str
    step_size: int
    validation: float | None = None
    version: int = VERSION


@dataclass(frozen=True)
class Snapshot:
    """A run's state on the host, ready to be written while the run goes on."""

    about: About
    state: object
    tensors: dict[str, Tensor]

    @classmethod
    def of(cls, about: About, state: dict) -> Snapshot:
        """Copies everything: ``state`` may change right afterwards."""
        return cls(about, *packing.pack(state))

    def write(self, folder: Path) -> Path:
        """Write ``step_00000012.safetensors`` into ``folder``. Raises OSError, and then leaves nothing behind."""
        path = folder / f"step_{self.about.step:08}{ENDING}"
        folder.mkdir(parents=True, exist_ok=True)
        header = {"about": asdict(self.about), "state": self.state, "crc32": checksum(self.tensors)}
        text = json.dumps(header)
        try:
            with apart(path) as place:
                metadata = {"format": "pt", META: text, SUM: f"{zlib.crc32(text.encode()):08x}"}
                save_file(self.tensors, place / path.name, metadata)
                move(place / path.name, path, durable=True)
        except SafetensorError as error:  # a full disk raises it too
            raise OSError(str(error)) from error
        return path


def checksum(tensors: dict[str, Tensor]) -> str:
    """CRC-32 over the tensors, sorted by name: of each the name, dtype and shape as JSON, then the bytes."""
    crc = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        crc = zlib.crc32(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode(), crc)
        crc = zlib.crc32(tensor.contiguous().flatten().view(torch.uint8).numpy(), crc)
    return f"{crc:08x}"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk."""

    path: Path
    about: About

    def load(self) -> dict:
        """The state. Raises DamagedCheckpoint if one bit of it has changed."""
        try:
            with safe_open(self.path, framework="pt") as file:
                # Copies: newer safetensors map the file, which Windows could then not remove while the run goes on.
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
                header = _header(file)
            sum_is_right = checksum(tensors) == header["crc32"]
            state = packing.unpack(header["state"], tensors)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DamagedCheckpoint(str(error)) from error
        if not sum_is_right:
            raise DamagedCheckpoint("its checksum is wrong")
        if not isinstance(state, dict):
            raise DamagedCheckpoint("it holds no state")
        return state


def read(path: Path) -> Checkpoint:
    """A checkpoint's header; its tensors are not read. Raises DamagedCheckpoint."""
    try:
        with safe_open(path, framework="pt") as file:
            about = _header(file)["about"]
        if about["version"] != VERSION:
            raise DamagedCheckpoint(f"its version is {about['version']}, this pack reads {VERSION}")
        checkpoint = Checkpoint(path, About(**{**about, "job": earlier.renamed(about["job"])}))
        _require_whole(checkpoint.about)
        return checkpoint
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedCheckpoint(str(error)) from error


def _require_whole(about: About) -> None:
    """Raise ValueError if what a checkpoint says about itself is not of the kinds that ``About`` names."""
    numbers = (about.step, about.total, about.step_size)
    if any(type(number) is not int or number < 0 for number in numbers) or not isinstance(about.dataset, str):
        raise ValueError("what it says about itself is not of the right kinds")


def _header(file) -> dict:
    """The JSON in an open file's header. Raises ValueError, KeyError or TypeError if it has changed."""
    metadata = file.metadata()
    if f"{zlib.crc32(metadata[META].encode()):08x}" != metadata[SUM]:
        raise ValueError("its header's checksum is wrong")
    return json.loads(metadata[META])


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    return int(path.stem.removeprefix("step_"))


def paths(folder: Path) -> list[Path]:
    """The files of all checkpoints, the newest last."""
    return sorted(folder.glob(f"step_*{ENDING}"))
