"""This pack: every kind of adapter in every format that carries it, and LoRA Apply."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from flux2_train.adapters import dora, files, read, write
from flux2_train.adapters.names import sizes_of
from flux2_train.adapters.parts import Hadamard, Kronecker, LowRank, Part
from flux2_train.errors import UserError

from .packages import comfyui_model
from .trees import CONTEXT, DOUBLE, HIDDEN, SINGLE, Peer, Weights, Written, in_blocks


def _numbers(*shape: int) -> Tensor:
    return torch.randn(*shape)


def _lora(weight: Tensor, place: int, rank: int = 4) -> Part:
    return LowRank(0.1 * _numbers(rank, weight.shape[1]), _numbers(len(weight), rank), 0.3)


def _several_ranks(weight: Tensor, place: int) -> Part:
    return _lora(weight, place, 2 + place % 3)


def _dora(weight: Tensor, place: int) -> Part:
    part = _lora(weight, place)
    return LowRank(part.down, part.up, 0.3, weight.norm(dim=1) * (1 + 0.2 * _numbers(len(weight))))


def _loha(weight: Tensor, place: int) -> Part:
    out, into = weight.shape
    return Hadamard(_numbers(out, 4), 0.1 * _numbers(4, into), _numbers(out, 4), _numbers(4, into), 0.3)


def _lokr(weight: Tensor, place: int) -> Part:
    out, into = weight.shape
    return Kronecker((_numbers(8, 8),), (_numbers(out // 8, 4), 0.1 * _numbers(4, into // 8)), 0.3)


def _lokr_whole(weight: Tensor, place: int) -> Part:
    out, into = weight.shape
    return Kronecker((_numbers(8, 8),), (0.1 * _numbers(out // 8, into // 8),))


MAKES: dict[str, Callable[[Tensor, int], Part]] = {
    "LoRA": _lora, "LoRA of several ranks": _several_ranks, "DoRA": _dora, "LoHa": _loha, "LoKr": _lokr,
    "LoKr, whole factors": _lokr_whole,
}  # fmt: skip


def ours() -> Peer:
    def write_(weights: Weights, folder: Path, make: Callable, format: str) -> Written:
        torch.manual_seed(0)
        layers = {name: weights[f"{name}.weight"] for name in in_blocks(weights)}
        parts = {name: make(weight, place) for place, (name, weight) in enumerate(layers.items())}
        exported = files.export(parts, format, "fp32", weights=_of(layers))
        path = files.save_as(exported, files.path_of(folder, "ours", format), {"flux2_train.version": "bench"})
        return Written(path, {name: w + dora.change(parts[name], w) for name, w in layers.items()})

    def read_(weights: Weights, path: Path) -> Weights:
        from flux2_train.host.lora import apply as lora

        model = comfyui_model(weights)
        loaded = lora.read(model, read.load(path))
        made = {name: weights[f"{name}.weight"].clone() for name in in_blocks(weights)}
        for name, part in loaded.parts.items():
            made[name] = made[name] + dora.change(part, made[name])
        return made

    writes = {
        f"{kind}, {format}": lambda w, f, m=make, o=format: write_(w, f, m, o)
        for kind, make in MAKES.items()
        for format in write.FORMATS
        if _carries(make, format)
    }
    return Peer("this pack", writes, read_)


def _of(layers: Weights):
    @contextmanager
    def weight(name: str) -> Iterator[Tensor]:
        yield layers[name]

    return weight


def _carries(make: Callable, format: str) -> bool:
    sizes = sizes_of(HIDDEN, DOUBLE, SINGLE, CONTEXT)
    parts = {name: make(torch.ones(out, into), 0) for name, (into, out) in sizes.items() if "_blocks." in name}
    try:
        write.require_carried(parts, format)
    except UserError:
        return False
    return True
