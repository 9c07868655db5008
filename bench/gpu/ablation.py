"""What each remedy of docs/speed.md gains: a training step without any, with some of them, compiled, and so on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from unittest.mock import patch

from torch import Tensor, nn

from bench.gpu.rows import REMEDIES
from bench.gpu.steps import step
from flux2_train.adapters import live
from flux2_train.host.borrowed import borrow, rotation
from flux2_train.streaming import uploads
from flux2_train.train import guards, trainer


def ablation(flavour: str, pixels: int, precision: str, remedies: Sequence[str], **settings: str) -> dict:
    """A row: ``steps.step`` with these of REMEDIES alone, and its ``compile``, ``speed``, ``attention``, ``recompute``.

    Blocks are recomputed whole where nothing else is asked for, so that rows have one layout.
    """
    with without([name for name in REMEDIES if name not in remedies]):
        return step(flavour, pixels, precision, **{"recompute": "blocks", **settings})


@contextmanager
def without(remedies: Sequence[str]) -> Iterator[None]:
    """These remedies do not act inside, in models that are borrowed and steps that are made there."""
    with ExitStack() as patched:
        for place, attribute, value in (each for name in remedies for each in WITHOUT[name]):
            patched.enter_context(patch.object(place, attribute, value))
        yield


def _norm_as_loaded(module: nn.Module, original: Callable, kept: dict, home: object, x: Tensor) -> Tensor:
    return _rms_norm(module, original, {}, home, x)


def _original(module: nn.Module, original: Callable) -> Callable:
    return original


def _read(unread: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same function, after which the processor waits for the device."""

    @wraps(unread)
    def waits(*args) -> Tensor:
        found = unread(*args)
        found.cpu()
        return found

    return waits


_rms_norm = borrow._rms_norm
# By remedy what takes it away: an attribute of something, and its value. Every value computes the same function.
WITHOUT: dict[str, list[tuple[object, str, object]]] = {
    "lora": [(live._LiveDelta, "fuses", lambda delta, dtype: False)],
    "norms": [(borrow, "_bare", _original), (borrow, "_rms_norm", _norm_as_loaded)],
    "rope": [(rotation, "available", lambda: False)],
    "uploads": [(uploads, "PINNING", set())],
    "one-wait": [(trainer, "clip", _read(guards.clip)),
                 (guards.DeadAdapters, "sizes", _read(guards.DeadAdapters.sizes))],
    "unread": [(borrow, "unread_linears", lambda *_: frozenset())],
}  # fmt: skip
