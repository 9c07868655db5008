"""Optimizers by the name of their class, from libraries that are allowed. Nothing else is ever imported."""

from __future__ import annotations

import importlib
import inspect
import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import UserError
from ..host.system.memory import is_out_of_memory
from ..names import shown
from ..settings.optimizer import LIBRARIES, OptimizerSettings
from . import packing

ENVIRONMENT = "FLUX2_OPTIMIZERS"  # further modules, separated by commas: set by who starts ComfyUI, never by a job
Groups = list[dict]


def build(config: OptimizerSettings, groups: Groups) -> torch.optim.Optimizer:
    """The optimizer that ``config.other`` names, for parameter groups that each have ``params`` and ``lr``.

    It is tried first on parameters of the same shapes. Raises UserError if the class may not be used, is not there,
    does not take the arguments, cannot train these parameters, or has a state that a checkpoint cannot hold.
    """
    made = class_of(config.other)
    arguments = _arguments(made, config)
    _tried(config.other, lambda given: made(given, **arguments), groups)
    optimizer = made(groups, **arguments)
    if hasattr(optimizer, "train"):  # schedule-free ones
        optimizer.train()
    return optimizer


def state_bytes(config: OptimizerSettings, parameters: Sequence[nn.Parameter]) -> int:
    """Bytes that the optimizer keeps for these parameters, measured with one step on one parameter of each shape."""
    made = class_of(config.other)
    arguments, total = _arguments(made, config), 0
    for shape, (one, count) in _by_shape(parameters).items():
        group = {"params": [one], "lr": 1e-3}
        tried = _tried(f"{config.other} for {tuple(shape)}", lambda given: made(given, **arguments), [group])
        total += count * sum(t.nbytes for t in packing.pack(tried.state_dict()["state"])[1].values())
    return total


def class_of(name: str) -> type[torch.optim.Optimizer]:
    """The class of that name, if its module is allowed. Raises UserError that says what is allowed or missing."""
    module, _, kind = name.rpartition(".")
    allowed = [*LIBRARIES, *filter(None, (each.strip() for each in os.environ.get(ENVIRONMENT, "").split(",")))]
    if module not in allowed:
        raise UserError(
            f"The optimizer {shown(name)!r} is of no library that may be used: {', '.join(allowed)}. Who starts "
            f"ComfyUI can allow another module in the environment variable {ENVIRONMENT}."
        )
    try:
        found = getattr(importlib.import_module(module), kind, None)
    except ImportError as error:
        package = LIBRARIES.get(module, module.partition(".")[0])
        raise UserError(
            f"The optimizer {name} needs {package}, which could not be imported ({error}); run 'pip install {package}' "
            "with the Python that runs ComfyUI, or choose adamw."
        ) from error
    if not (inspect.isclass(found) and issubclass(found, torch.optim.Optimizer) and found is not torch.optim.Optimizer):
        raise UserError(f"{shown(name)!r} is no optimizer: {module} has no class {shown(kind)} that torch calls one.")
    return found


def _arguments(made: type, config: OptimizerSettings) -> dict[str, Any]:
    """The arguments that were set, and the weight decay if the class has one. Raises UserError for unknown ones."""
    known = [p.name for p in inspect.signature(made).parameters.values() if p.kind is not p.VAR_KEYWORD]
    decay = {"weight_decay": config.weight_decay} if "weight_decay" in known else {}
    moments = ({"betas": config.betas} if config.betas else {}) | ({"eps": config.eps} if config.eps else {})
    asked = {**moments, **dict(config.other_arguments)}
    for name in asked:
        if name not in known:
            raise UserError(f"{config.other} has no {name}; it takes {', '.join(known[1:])}.")
    return {**decay, **asked}


def _tried(name: str, make: Callable[[Groups], torch.optim.Optimizer], groups: Groups) -> torch.optim.Optimizer:
    """An optimizer that has done a step on copies of one parameter of each shape. Raises UserError if it cannot."""
    copies = [{**group, "params": _copies(group["params"])} for group in groups]
    for parameter in (each for group in copies for each in group["params"]):
        parameter.grad = torch.ones_like(parameter)
    try:
        tried = make(copies)
        tried.step()
        packing.pack(tried.state_dict())
    except Exception as error:
        if is_out_of_memory(error):
            raise
        why = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{name} cannot train this LoRA ({why}): choose another optimizer or adapter.") from error
    return tried


def _copies(parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros_like(one)) for one, _ in _by_shape(parameters).values()]


def _by_shape(parameters: Sequence[nn.Parameter]) -> dict[torch.Size, tuple[nn.Parameter, int]]:
    """For each shape a parameter that has it, and how many do."""
    counts, ones = Counter(p.shape for p in parameters), {p.shape: p for p in parameters}
    return {shape: (ones[shape], count) for shape, count in counts.items()}
