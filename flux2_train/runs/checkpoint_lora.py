"""The LoRA that a run would have saved at one of its checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..adapters import files
from ..adapters.header import REFERENCES, Tensors
from ..adapters.live import Adapters
from ..errors import UserError
from ..host import identify
from ..host.borrowed.borrow import training_mode
from ..host.graph_types import ModelPatcher
from ..host.lora import apply as lora
from ..settings.base import read as read_settings
from ..settings.training import TrainingSettings
from ..train import optimizers, packing
from ..train.building import build_adapters, build_optimizer
from . import checkpoints
from .checkpoints import DamagedCheckpoint


def lora_of(model: ModelPatcher, path: Path) -> dict[str, Tensor]:
    """The LoRA that a run would have saved at the checkpoint ``path``, in fp32.

    ``model`` is a MODEL of the flavour that the run trained, base or distilled. Raises UserError for a damaged file and
    for another flavour's.
    """
    try:
        checkpoint = checkpoints.read(path)
        state = checkpoint.load()
    except DamagedCheckpoint as error:
        raise UserError(f"The checkpoint {path.name} cannot be read ({error}); leave it out.") from error
    config = read_settings(TrainingSettings, checkpoint.about.job["training"], "training")
    return _exported(model, config, state, path.name)


def _exported(model: ModelPatcher, config: TrainingSettings, state: dict, name: str) -> dict[str, Tensor]:
    start = replace(config, adapter=replace(config.adapter, start_from=""))  # the state holds the trained weights
    with training_mode(), torch.no_grad():
        adapters = build_adapters(model, start)
        masters = adapters.masters()
        if {k: p.shape for k, p in masters.items()} != {k: t.shape for k, t in state["adapter"].items()}:
            raise UserError(f"The checkpoint {name} does not fit the MODEL, {identify.flavour_name(model)}: wire the "
                            "flavour that the run was trained on.")  # fmt: skip
        for key, parameter in masters.items():
            parameter.copy_(state["adapter"][key])
        _set_export_weights(adapters, config, state)
        exported = files.export(adapters.parts(), "comfyui", "fp32", weights=lora.weights(model))
    return Tensors(exported.tensors, {REFERENCES: config.guidance.references})


def _set_export_weights(adapters: Adapters, config: TrainingSettings, state: dict) -> None:
    """Put the weights in place that ``Trainer.weights_for("export")`` saves: the mean, or schedule-free's."""
    if config.ema.ema_decay and config.ema.ema_export:
        for parameter, mean in zip(adapters.trainable(), state["ema"]["shadow"], strict=True):
            parameter.copy_(mean)
    elif config.optimizer.optimizer in optimizers.SCHEDULE_FREE:
        optimizer = build_optimizer(adapters, config)
        optimizer.load_state_dict(packing.copied(state["optimizer"]))
        optimizer.eval()
