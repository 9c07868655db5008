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
from ..settings.dataset_folder import DatasetSettings
from ..settings.saving import SaveSettings
from ..settings.training import TrainingSettings
from ..train import optimizers, packing
from ..train.building import build_adapters, build_optimizer
from . import checkpoints
from .checkpoints import DamagedCheckpoint
from .results import header


def lora_of(model: ModelPatcher, path: Path) -> dict[str, Tensor]:
    """The LoRA that a run would have saved at the checkpoint ``path``, in fp32.

    ``model`` is a MODEL of the flavour that the run trained, base or distilled. Raises UserError for a damaged file and
    for another flavour's.
    """
    config, _, state = _read(path)
    exported = _exported(model, config, state, path.name, SaveSettings(precision="fp32"))
    return Tensors(exported.tensors, {REFERENCES: config.guidance.references})


def write_lora(model: ModelPatcher, path: Path, output: Path, save: SaveSettings) -> str:
    """Write the LoRA of the checkpoint ``path`` to ``output``, a folder for peft. Returns one line on what was done.

    Its header is that of the LoRA that the run would have saved, but for the certificate. Raises as ``lora_of``.
    """
    config, about, state = _read(path)
    exported = _exported(model, config, state, path.name, save)
    dataset = read_settings(DatasetSettings, next(iter(about.job["dataset"]), {}), "dataset")
    steps = len(state["history"]["losses"])
    products = state.get("products", {}).get("sentence", "")
    metadata = {**header(config, model, steps, dataset, products), **exported.metadata}
    written = files.save_as(exported, output, metadata)
    return f"{written.name}: {len(exported.parts)} layers of step {about.step} as {save.format}, {save.precision}"


def _read(path: Path) -> tuple[TrainingSettings, checkpoints.About, dict]:
    try:
        checkpoint = checkpoints.read(path)
        state = checkpoint.load()
    except DamagedCheckpoint as error:
        raise UserError(f"The checkpoint {path.name} cannot be read ({error}); leave it out.") from error
    config = read_settings(TrainingSettings, checkpoint.about.job["training"], "training")
    return config, checkpoint.about, state


def _exported(
    model: ModelPatcher, config: TrainingSettings, state: dict, name: str, save: SaveSettings
) -> files.Exported:
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
        weights = lora.weights(model)
        return files.export(adapters.parts(), save.format, save.precision, save.plain_rank, weights, model.load_device)


def _set_export_weights(adapters: Adapters, config: TrainingSettings, state: dict) -> None:
    """Put the weights in place that ``Trainer.weights_for("export")`` saves: the mean, or schedule-free's."""
    if config.ema.ema_decay and config.ema.ema_export:
        for parameter, mean in zip(adapters.trainable(), state["ema"]["shadow"], strict=True):
            parameter.copy_(mean)
    elif config.optimizer.optimizer in optimizers.SCHEDULE_FREE:
        optimizer = build_optimizer(adapters, config)
        optimizer.load_state_dict(packing.copied(state["optimizer"]))
        if hasattr(optimizer, "eval"):
            optimizer.eval()
