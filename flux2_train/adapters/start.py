"""Starting from a LoRA: the parts of a file are put into new adapters, whose rank may be higher."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import UserError
from .dora import is_dora
from .live import NAME, Adapters
from .parts import Hadamard, Kronecker, LowRank, Part

# peft's names for the matrices of a part, and the dimension of each that is the rank.
GROWS = {
    "lora": (("lora_A", 0), ("lora_B", 1)),
    "loha": (("hada_w1_a", 1), ("hada_w1_b", 0), ("hada_w2_a", 1), ("hada_w2_b", 0)),
}
KIND = {LowRank: "lora", Hadamard: "loha", Kronecker: "lokr"}


@torch.no_grad()
def start_from(adapters: Adapters, parts: dict[str, Part]) -> None:
    """Make new ``adapters`` act as ``parts`` do; layers without a part change nothing at first.

    Where the adapters' rank is higher, the added ranks change nothing at first and can learn. Raises UserError naming a
    layer that has no adapter, another kind of adapter, or a lower rank than the part.
    """
    for name, part in parts.items():
        if name not in adapters.sites:
            raise UserError(f"The LoRA to start from trains {name}, which the chosen targets leave out; widen them.")
        if KIND.get(type(part)) != adapters.config.kind or is_dora(part) != adapters.config.dora:
            raise UserError(f"The LoRA to start from has another kind of adapter on {name}; choose the same kind.")
        _set(adapters, name, part)


def _set(adapters: Adapters, name: str, part: Part) -> None:
    layer, factor = adapters.layer(name), part.scale / adapters.layer(name).scaling[NAME]
    match part:
        case LowRank():
            _fill(layer, name, "lora", (part.down, part.up * factor), new_zero={"lora_B"})
            if part.magnitude is not None:
                adapters.magnitude(name).copy_(part.magnitude)
        case Hadamard():
            matrices = (part.up1, part.down1 * factor, part.up2, part.down2)
            _fill(layer, name, "loha", matrices, new_zero={"hada_w1_b", "hada_w2_b"})
        case Kronecker():
            _fill_factors(layer, name, part, factor)


def _fill(layer: nn.Module, name: str, kind: str, matrices: tuple[Tensor, ...], new_zero: set[str]) -> None:
    """Copy each matrix into its parameter. In the added ranks one factor is set to zero, the other keeps its start."""
    for (key, grown), matrix in zip(GROWS[kind], matrices, strict=True):
        target = _parameter(layer, key)
        rank, own = matrix.shape[grown], target.shape[grown]
        if matrix.shape[1 - grown] != target.shape[1 - grown]:
            raise UserError(f"The LoRA to start from was trained on another flavour: {name} has another size there.")
        if rank > own:
            raise UserError(f"The LoRA to start from has rank {rank} on {name}; set the rank to {rank} or more.")
        target.narrow(grown, 0, rank).copy_(matrix)
        if key in new_zero:
            target.narrow(grown, rank, own - rank).zero_()


def _fill_factors(layer: nn.Module, name: str, part: Kronecker, factor: float) -> None:
    """Copy LoKr's factors, to which no rank can be added: the shapes must be the same."""
    factors = (part.left[0] * factor, *part.left[1:]), part.right
    for which, matrices in zip(("w1", "w2"), factors, strict=True):
        keys = [f"lokr_{which}"] if len(matrices) == 1 else [f"lokr_{which}_a", f"lokr_{which}_b"]
        own = [_parameter(layer, key) for key in keys]
        if any(p is None or p.shape != m.shape for p, m in zip(own, matrices, strict=True)):
            shapes = " times ".join("x".join(map(str, m.shape)) for m in matrices)
            raise UserError(
                f"The LoKr to start from has factors of {shapes} on {name}, which this rank and lokr_factor do not "
                "give; set both as in the run that made it."
            )
        for parameter, matrix in zip(own, matrices, strict=True):
            parameter.copy_(matrix)


def _parameter(layer: nn.Module, key: str) -> Tensor | None:
    holder = getattr(layer, key)  # a ModuleDict or a ParameterDict
    member = dict(holder.items()).get(NAME)
    return member.weight if isinstance(member, nn.Module) else member
