"""What a configuration asks for on a MODEL: adapters, new or as a checkpoint holds them, and their optimizer."""

from __future__ import annotations

from pathlib import Path

import torch

from ..adapters import read, targets
from ..adapters.live import Adapters, Site
from ..adapters.start import start_from
from ..data.dataset import Dataset
from ..errors import UserError
from ..host.borrowed.borrow import linears
from ..host.lora import apply as lora
from ..settings.training import TrainingSettings
from . import optimizers


def build_adapters(model, config: TrainingSettings) -> Adapters:
    """New adapters on the layers that ``config`` chooses. Call where autograd is on."""
    layers, own, device = linears(model), config.adapter, model.load_device
    chosen = targets.select(layers, config.targets, own.include, own.exclude, own.double_blocks, own.single_blocks)
    sizes = targets.ranks(chosen, config.rank, config.scale_alpha, own.ranks)
    sites = {n: Site(layers[n].in_features, layers[n].out_features, *size) for n, size in sizes.items()}
    adapters = Adapters(sites, own, config.seed, device, lora.row_norms(model))
    if own.start_from:
        start_from(adapters, lora.trainable(model, read.load(Path(own.start_from))))
    return adapters


def build_optimizer(adapters: Adapters, config: TrainingSettings) -> torch.optim.Optimizer:
    """The optimizer that ``config`` chooses, on the adapters. Call where autograd is on."""
    layer_of = {parameter: name for name in adapters.names for parameter in adapters.of_layer(name)}
    groups = adapters.groups(config.learning_rate)
    return optimizers.build(config.optimizer, optimizers.by_block(groups, layer_of, config.optimizer.block_rates))


def require_preserved(dataset: Dataset, config: TrainingSettings) -> None:
    """Raise UserError if the data set lacks what preservation keeps: masks, a class word, a trigger word."""
    if config.preservation_options.outside_mask and not any(item.mask for item in dataset.items):
        raise UserError("outside_mask is on but no image has a mask: give the data set masks, or set it to 0.")
    if not config.preservation or config.preservation_options.kind != "class":
        return
    for field, name in (("class_word", "class word"), ("trigger", "trigger word")):
        folders = dataset.without(field)
        if folders:
            raise UserError(
                f"Preservation is on but Dataset Folder has no {name} ({', '.join(folders)}); fill in '{field}'."
            )
