"""Optimizers, each from its own library, which is imported when the user chooses it. None replaces another."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from fnmatch import fnmatchcase

import torch
from torch import nn

from ..errors import UserError
from ..names import shown
from ..settings.optimizer import OTHER, OptimizerSettings
from . import other_optimizers

Groups = list[dict]
SCHEDULE_FREE = ("schedulefree", OTHER)  # may have an ``eval()``, which puts the weights to use in place of others


def build(config: OptimizerSettings, groups: Groups) -> torch.optim.Optimizer:
    """The optimizer for parameter groups, each with ``params`` and ``lr``.

    Raises UserError if its library is not installed, or if it cannot train these parameters.
    """
    return _BUILDERS[config.optimizer](config, groups)


def by_block(groups: Groups, names: dict[nn.Parameter, str], rates: tuple[tuple[str, float], ...]) -> Groups:
    """The groups, split so that the first of ``rates`` whose pattern fits a parameter's layer multiplies its rate.

    ``names`` gives the layer of each parameter; a pattern is a glob of its whole name. Raises UserError for a pattern
    that fits no layer.
    """
    for pattern, _ in rates:
        if not any(fnmatchcase(name, pattern) for name in names.values()):
            raise UserError(_fits_none(pattern, list(dict.fromkeys(names.values()))))
    if not rates:
        return groups

    def factor(parameter: nn.Parameter) -> float:
        return next((rate for pattern, rate in rates if fnmatchcase(names[parameter], pattern)), 1.0)

    split = []
    for group in groups:
        for value in dict.fromkeys(factor(p) for p in group["params"]):
            chosen = [p for p in group["params"] if factor(p) == value]
            split.append({**group, "params": chosen, "lr": group["lr"] * value})
    return split


def _fits_none(pattern: str, names: list[str]) -> str:
    """What is wrong with a pattern that fits no layer: earlier versions took regular expressions on parts of names."""
    glob = pattern.replace(".*", "*").replace(r"\d+", "*").replace(r"\.", ".").strip("^$*")
    for written in (glob, f"{glob}*", f"*{glob}", f"*{glob}*"):
        if glob and any(fnmatchcase(name, written) for name in names):
            return f"The block rate {shown(pattern)!r} fits no layer as a whole name: write {shown(written)!r}."
    return f"The block rate {shown(pattern)!r} fits no layer; layers are named like {names[0]}."


def _adamw(config: OptimizerSettings, groups: Groups) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, weight_decay=config.weight_decay, **_moments(config))


def _adamw8bit(config: OptimizerSettings, groups: Groups) -> torch.optim.Optimizer:
    library = _library("bitsandbytes", "bitsandbytes", config.optimizer)
    device = groups[0]["params"][0].device
    if device.type != "cuda":
        raise UserError(f"adamw8bit needs a CUDA device, but this run is on {device}; choose adamw.")
    return library.optim.AdamW8bit(groups, weight_decay=config.weight_decay, **_moments(config))


def _adafactor(config: OptimizerSettings, groups: Groups) -> torch.optim.Optimizer:
    # these three off: the defaults would ignore the user's rate and compute one from the step's number
    adafactor = _library("transformers.optimization", "transformers", config.optimizer).Adafactor
    return adafactor(groups, relative_step=False, scale_parameter=False, warmup_init=False,
                     weight_decay=config.weight_decay)  # fmt: skip


def _prodigy(config: OptimizerSettings, groups: Groups) -> torch.optim.Optimizer:
    prodigy = _library("prodigyopt", "prodigyopt", config.optimizer).Prodigy
    rates = {group["lr"] for group in groups if group["lr"]}
    if len(rates) > 1:
        raise UserError(
            f"Prodigy has one learning rate for all layers, but there are {len(rates)}; turn LoRA+ and block rates off."
        )
    if max(rates, default=1.0) < 0.1:
        raise UserError(
            f"Prodigy finds the learning rate itself and multiplies it by yours, which is {max(rates):g}; set it to 1."
        )
    return prodigy(groups, weight_decay=config.weight_decay, use_bias_correction=True, safeguard_warmup=True,
                   **_moments(config))  # fmt: skip


def _lion(config: OptimizerSettings, groups: Groups) -> torch.optim.Optimizer:
    lion = _library("lion_pytorch", "lion-pytorch", config.optimizer).Lion
    return lion(groups, weight_decay=config.weight_decay, **({"betas": config.betas} if config.betas else {}))


def _schedulefree(config: OptimizerSettings, groups: Groups) -> torch.optim.Optimizer:
    library = _library("schedulefree", "schedulefree", config.optimizer)
    optimizer = library.AdamWScheduleFree(groups, weight_decay=config.weight_decay, **_moments(config))
    optimizer.train()
    return optimizer


_BUILDERS: dict[str, Callable[[OptimizerSettings, Groups], torch.optim.Optimizer]] = {
    "adamw": _adamw, "adamw8bit": _adamw8bit, "adafactor": _adafactor, "prodigy": _prodigy, "lion": _lion,
    "schedulefree": _schedulefree, OTHER: other_optimizers.build,
}  # fmt: skip


def _moments(config: OptimizerSettings) -> dict:
    """``betas`` and ``eps``, if the user has set them."""
    return ({"betas": config.betas} if config.betas else {}) | ({"eps": config.eps} if config.eps else {})


def _library(module: str, package: str, optimizer: str):
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"The optimizer {optimizer} needs {package}, which could not be imported ({error}); run "
            f"'pip install {package}' with the Python that runs ComfyUI, or choose adamw."
        ) from error
