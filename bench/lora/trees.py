"""A small FLUX.2's Linears as the programs see them, and what an adapter makes of their weights."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.as_diffusers import diffusers_transformer, diffusers_weights

HIDDEN, DOUBLE, SINGLE, CONTEXT = 128, 1, 2, 96
Weights = dict[str, Tensor]  # by layer, in Black Forest Labs' names


def base_weights() -> Weights:
    """Every weight of a FLUX.2 transformer of these sizes, random, by its name in ComfyUI's model."""
    from bench.shapes import flux2_shapes  # ComfyUI has to be found first

    draw = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=draw) * shape[-1] ** -0.5 if len(shape) > 1 else torch.ones(shape)
        for name, shape in flux2_shapes(HIDDEN, DOUBLE, SINGLE, CONTEXT)
    }


def in_blocks(weights: Weights) -> Iterator[str]:
    """The names of the blocks' Linears, without ``.weight``."""
    return (name.removesuffix(".weight") for name, w in weights.items() if w.ndim == 2 and "_blocks." in name)


class Flux2(nn.Module):
    """The blocks' Linears, plain, under Black Forest Labs' names and in classes called as theirs are."""

    def __init__(self, weights: Weights):
        super().__init__()
        self.double_blocks = nn.ModuleList(DoubleStreamBlock() for _ in range(DOUBLE))
        self.single_blocks = nn.ModuleList(SingleStreamBlock() for _ in range(SINGLE))
        for name in in_blocks(weights):
            *parents, last = name.split(".")
            node: nn.Module = self
            for parent in parents:
                if parent not in node._modules:
                    node.add_module(parent, nn.Module())
                node = node._modules[parent]
            linear = nn.Linear(*weights[f"{name}.weight"].T.shape, bias=False)
            linear.weight = nn.Parameter(weights[f"{name}.weight"].clone(), requires_grad=False)
            node.add_module(last, linear)


class DoubleStreamBlock(nn.Module):
    """Named as musubi-tuner looks for it."""


class SingleStreamBlock(nn.Module):
    """Named as musubi-tuner looks for it."""


@torch.no_grad()
def acting(tree: nn.Module, weights: Weights) -> Weights:
    """The weight (out, in) that each of the blocks' Linears of a ``Flux2`` multiplies by, hooks included."""
    modules = dict(tree.named_modules())
    return {name: _acting(modules[name]) for name in in_blocks(weights)}


@torch.no_grad()
def acting_in_diffusers(transformer: nn.Module, weights: Weights) -> Weights:
    """The same of diffusers' transformer, whose q, k and v are one layer here."""
    modules = dict(transformer.named_modules())
    found = {}
    for name in in_blocks(weights):
        stems = [
            key.removesuffix(".weight") for key in diffusers_weights({f"{name}.weight": weights[f"{name}.weight"]})
        ]
        found[name] = torch.cat([_acting(modules[stem]) for stem in stems])
    return found


def _acting(linear: nn.Module) -> Tensor:
    return linear(torch.eye(linear.in_features)).T.clone()


def transformer_of(weights: Weights) -> nn.Module:
    """diffusers' own transformer with copies of these weights."""
    return diffusers_transformer({name: w.clone() for name, w in weights.items()})


@torch.no_grad()
def draw(modules: nn.Module | list[nn.Module], seed: int = 0) -> None:
    """Numbers for what an adapter learns: magnitudes near where they are, all else small."""
    generator = torch.Generator().manual_seed(seed)
    for module in modules if isinstance(modules, list) else [modules]:
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if any(word in name for word in ("dora_scale", "magnitude", "rescale")):
                parameter.mul_(1 + 0.2 * noise)
            else:
                parameter.copy_(0.1 * noise)


@dataclass(frozen=True)
class Written:
    """A file that a program wrote, and the weights that the adapter in it made of the base's in that program."""

    path: Path
    made: Weights


@dataclass
class Peer:
    """A program: what it writes, by kind, and how it reads. ``missing`` is why it cannot take part, empty if it can."""

    name: str
    writes: dict[str, Callable[[Weights, Path], Written]] = field(default_factory=dict)
    reads: Callable[[Weights, Path], Weights] | None = None
    missing: str = ""


def on_path(folder: str) -> None:
    """Let a program's own code be imported from its folder."""
    if folder and folder not in sys.path:
        sys.path.append(folder)
