"""Builds what the settings choose for a MODEL: the adapters and their optimizer; and says what cannot act."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from ..adapters import read, targets
from ..adapters.live import Adapters, Site
from ..adapters.start import start_from
from ..data.dataset import Dataset
from ..errors import UserError
from ..host import identify, sizes
from ..host.borrowed.borrow import linears
from ..host.borrowed.cards import Cards
from ..host.describe import lora_warning
from ..host.graph_types import ModelPatcher
from ..host.lora import apply as lora
from ..host.system import cards
from ..planning.cards import split
from ..planning.planner import GB
from ..settings.training import TrainingSettings
from . import optimizers
from .slider import require_pairs


def cards_of(model: ModelPatcher, config: TrainingSettings, processes: int = 1) -> Cards:
    """The cards of a run and the blocks on each. Raises UserError for cards that are not there, or too many."""
    devices = cards.chosen(config.memory.cards, model.load_device)
    weights, name = sizes.weights_of(model), identify.flavour_name(model)
    blocks = weights.block_bytes()
    if len(devices) > 1 and processes > 1:
        raise UserError(
            f"cards of Memory is {config.memory.cards!r}, and {processes} processes train, each on a card of its own: "
            "set cards to 1 or processes to 1."
        )
    if len(devices) > len(blocks):
        raise UserError(
            f"There are {len(devices)} cards, but {name} has {len(blocks)} blocks; set cards to that at most."
        )
    if len(devices) == 1:
        return Cards(devices, (len(blocks),))
    rooms = cards.free(devices, config.memory.memory_limit * GB)
    return Cards(devices, split(blocks, weights.total - sum(blocks), rooms))


def build_adapters(model: ModelPatcher, config: TrainingSettings, on: Cards | None = None) -> Adapters:
    """New adapters on the layers that ``config`` chooses, each on the card of its layer. Call with autograd on."""
    layers, settings = linears(model), config.adapter
    double = identify.sizes(model)[1]
    chosen = targets.select(
        layers, config.targets, settings.include, settings.exclude, settings.double_blocks, settings.single_blocks
    )
    ranks = targets.ranks(chosen, config.rank, config.scale_alpha, settings.ranks)
    sites = {n: Site(layers[n].in_features, layers[n].out_features, *rank) for n, rank in ranks.items()}
    device = (lambda name: on.of_layer(name, double)) if on else model.load_device
    adapters = Adapters(sites, settings, config.seed, device, lora.row_norms(model))
    if settings.start_from:
        start_from(adapters, lora.trainable(model, read.load(Path(settings.start_from))))
    return adapters


def build_optimizer(adapters: Adapters, config: TrainingSettings) -> torch.optim.Optimizer:
    """The optimizer that ``config`` chooses, on the adapters. Call with autograd on."""
    return optimizers.build(config.optimizer, _groups(adapters, config))


def rates(adapters: Adapters, config: TrainingSettings) -> list[float]:
    """The learning rate of each group of ``build_optimizer``'s optimizer, before its schedule."""
    return [group["lr"] for group in _groups(adapters, config)]


def _groups(adapters: Adapters, config: TrainingSettings) -> optimizers.Groups:
    layer_of = {parameter: name for name in adapters.names for parameter in adapters.of_layer(name)}
    return optimizers.by_block(adapters.groups(config.learning_rate), layer_of, config.optimizer.block_rates)


def require_taught(dataset: Dataset, config: TrainingSettings) -> None:
    """Raise UserError if the data set lacks what is to be taught or preserved.

    Preservation needs masks, a class word or a trigger word, a slider of pairs a reference of each image.
    """
    require_pairs(config.slider, dataset)
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


def first_warnings(model: ModelPatcher, config: TrainingSettings, total: int) -> Iterator[str]:
    """What the user should know before the first of ``total`` steps: a doubtful model, and settings that do nothing."""
    yield from filter(None, (identify.distilled_warning(model), lora_warning(model)))
    guidance, every = config.guidance, config.preservation_options.every
    if (guidance.guidance, guidance.guidance_max) != (1, 0) and not identify.has_guidance(model):
        yield f"{identify.flavour_name(model)} has no guidance input; the guidance set is ignored."
    if config.preservation and every > total:
        yield (
            f"Preservation acts once in {every} steps, and this run has only {total}: nothing is preserved. Train for "
            "more steps, or set 'every' of Preservation to 1."
        )
