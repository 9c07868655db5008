"""Writes the results of a run: the LoRA file, and losses, plot and report in the run's folder."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from .. import __version__
from ..adapters.header import REFERENCES, Tensors
from ..atomic import write_table, write_text
from ..data.dataset import Dataset
from ..errors import UserError
from ..evaluate.best import best_step
from ..evaluate.plots import loss_plot
from ..host import identify
from ..host.graph_types import ModelPatcher
from ..settings.dataset_folder import DatasetSettings
from ..settings.training import TrainingSettings
from ..train.trainer import Trainer
from .folder import RunFolder, now
from .saving import SavedLora, save_adapters
from .writers.png import write_png

Beside = Callable[[str, Callable[[], None]], None]


def directly(what: str, write: Callable[[], None]) -> None:
    """Write, and raise what it raises."""
    write()


@dataclass(frozen=True)
class Results:
    """Paths of what was written, the LoRA itself as ComfyUI's LORA_MODEL, and its certificate in words."""

    lora: dict[str, torch.Tensor]
    lora_path: Path
    folder: Path
    certificate: str


def write_results(
    trainer: Trainer, lora_folder: Path, folder: RunFolder, stopped: bool = False, beside: Beside = directly
) -> Results:
    """Save the adapters as they are now. If the run was ``stopped`` early, the file name gets its step.

    ``beside`` writes the files of the run's folder, each by its name. Raises UserError, after everything is written,
    if the saved file does not act like the trained adapters. The LoRA of a stopped run is not checked: a broken model
    may be what stopped it.
    """
    name = f"{folder.name}_step{len(trainer.history.losses)}" if stopped else folder.name
    with trainer.weights_for("export"):
        header = metadata(trainer, trainer.dataset)
        saved = save_adapters(trainer, lora_folder, name, header, certify=not stopped)
    text = json.dumps(report(trainer, trainer.dataset, saved), indent=2) + "\n"
    beside("report.json", lambda: write_text(folder.report, text))
    beside("loss.csv", lambda: _write_losses(trainer, folder.losses))
    if trainer.history.losses:
        beside("loss.png", lambda: write_png(loss_plot(trainer.history, folder.name), folder.plot))
    if saved.problem:
        raise UserError(saved.problem)
    return Results(Tensors(saved.tensors, header), saved.path, folder.path, saved.certificate)


def _write_losses(trainer: Trainer, path: Path) -> None:
    history = trainer.history
    preservation = (value or "" for value in history.preservation)  # empty in steps that do not preserve
    rows = zip(history.losses, history.smoothed, preservation, history.seconds, history.rates, strict=True)
    header = ("step", "loss", "smoothed", "preservation", "seconds", "learning_rate")
    write_table(path, [header, *((step, *row) for step, row in enumerate(rows, 1))])


def report(trainer: Trainer, dataset: Dataset, saved: SavedLora) -> dict:
    """The run in figures: losses, seconds per step (median), peak memory in bytes."""
    history = trainer.history
    return {
        "flavour": identify.flavour_name(trainer.model),
        "base_file": identify.file_of(trainer.model),
        "lora": saved.path.name,
        "certificate": saved.certificate,
        "note": saved.note,
        "images": len(dataset.items),
        "held_out_images": len(trainer.held_out),
        "adapters": len(trainer.adapters.names),
        "steps": len(history.losses),
        "first_smoothed_loss": history.smoothed[min(9, len(history.smoothed) - 1)] if history.smoothed else None,
        "last_smoothed_loss": history.smoothed[-1] if history.smoothed else None,
        "loss_by_t": history.by_band(),
        "left_out_steps": trainer.bad_losses.total,
        "validation_loss": {str(step): loss for step, loss in sorted(history.validation.items())},
        "selectivity": {
            str(step): {"taught": taught, "leaked": leaked}
            for step, (taught, leaked) in sorted(history.selectivity.items())
        },
        "best_step": best_step(history),
        "seconds_per_step": statistics.median(history.seconds) if history.seconds else None,
        "peak_memory": peak_memory(trainer.device),
        "planned_peak_memory": trainer.memory.plan.estimate.peak,
        "products": trainer.memory.products.sentence,
        "plan": trainer.memory.describe().splitlines(),
    }


def peak_memory(device: torch.device) -> int:
    """Most bytes in use so far: allocated on the GPU, or resident in the process where the CPU trains."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes there, kibibytes on Linux


def metadata(trainer: Trainer, dataset: Dataset) -> dict[str, str]:
    """Header of the LoRA file: what it is, what it was trained on and how, for people and other tools."""
    products = trainer.memory.products.sentence
    return header(trainer.config, trainer.model, len(trainer.history.losses), dataset, products)


def header(
    config: TrainingSettings, model: ModelPatcher, steps: int, dataset: Dataset | DatasetSettings, products: str = ""
) -> dict[str, str]:
    """The header of a LoRA that was trained on ``model`` for that many steps.

    ``products`` says how the base model's products were computed, empty if exactly.
    """
    flavour = identify.flavour_name(model)
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"Flux.2-{flavour}/lora",
        "modelspec.implementation": "https://github.com/black-forest-labs/flux2",
        "modelspec.title": config.name,
        "modelspec.date": now(),
        "modelspec.resolution": f"{dataset.resolution}x{dataset.resolution}",
        "modelspec.trigger_phrase": dataset.trigger,
        "ss_base_model_version": f"flux_2_{flavour.replace('-', '_')}",
        "ss_sd_model_name": identify.file_of(model),
        "ss_network_module": "networks.lora_flux_2",
        "ss_network_dim": str(config.rank),
        # alpha is folded into the weights: readers must apply scale 1, which is alpha = rank
        "ss_network_alpha": str(config.rank),
        "ss_learning_rate": str(config.learning_rate),
        "ss_steps": str(steps),
        "ss_seed": str(config.seed),
        "flux2_train.version": __version__,
        "flux2_train.config": config.to_json(),
        "flux2_train.class_word": dataset.class_word,
        REFERENCES: config.guidance.references,
        **({"flux2_train.products": products} if products else {}),
    }
