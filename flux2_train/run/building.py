"""What a configuration asks for on a MODEL: adapters, new or as a checkpoint holds them, and their optimizer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..adapters import files, read, targets
from ..adapters.header import REFERENCES, Tensors
from ..adapters.live import Adapters, Site
from ..adapters.start import start_from
from ..data.dataset import Dataset
from ..errors import UserError
from ..host import identify, lora
from ..host.borrow import linears, training_mode
from ..settings.base import read as read_settings
from ..settings.training import TrainingSettings
from . import checkpoints, optimizers, packing
from .checkpoints import Damaged


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


def lora_of(model, path: Path) -> dict[str, Tensor]:
    """The LoRA that a run would have saved at a checkpoint, in fp32, for the MODEL it is made for or its sibling.

    Raises UserError for a damaged file and another flavour's.
    """
    try:
        checkpoint = checkpoints.read(path)
        state = checkpoint.load()
    except Damaged as error:
        raise UserError(f"The checkpoint {path.name} cannot be read ({error}); leave it out.") from error
    config = read_settings(TrainingSettings, checkpoint.about.job["training"], "training")
    return _exported(model, config, state, path.name)


def _exported(model, config: TrainingSettings, state: dict, name: str) -> dict[str, Tensor]:
    start = replace(config, adapter=replace(config.adapter, start_from=""))  # the state holds what became of it
    with training_mode(), torch.no_grad():
        adapters = build_adapters(model, start)
        mine = adapters.masters()
        if {k: p.shape for k, p in mine.items()} != {k: t.shape for k, t in state["adapter"].items()}:
            raise UserError(f"The checkpoint {name} does not fit the MODEL, {identify.flavour_name(model)}: wire the "
                            "flavour that the run was trained on.")  # fmt: skip
        for key, parameter in mine.items():
            parameter.copy_(state["adapter"][key])
        _settle(adapters, config, state)
        exported = files.export(adapters.parts(), "comfyui", "fp32", weights=lora.weights(model))
    return Tensors(exported.tensors, {REFERENCES: config.guidance.references})


def _settle(adapters: Adapters, config: TrainingSettings, state: dict) -> None:
    """From the weights that a checkpoint was trained at to those that ``weights_for("export")`` would have saved."""
    if config.ema.ema_decay and config.ema.ema_export:
        for parameter, mean in zip(adapters.trainable(), state["ema"]["shadow"], strict=True):
            parameter.copy_(mean)
    elif config.optimizer.optimizer in optimizers.SCHEDULE_FREE:
        optimizer = build_optimizer(adapters, config)
        optimizer.load_state_dict(packing.copied(state["optimizer"]))
        optimizer.eval()
