"""Saves the trained adapters to a file, and checks that the file acts as they do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..adapters import files
from ..adapters.dora import is_dora
from ..adapters.parts import Delta, Part, mapped
from ..data.samples import Sample
from ..errors import UserError
from ..host.borrowed.velocity import Condition
from ..host.lora import apply as lora
from ..host.lora import certificate
from ..host.lora.certificate import LARGEST_LATENT, Certificate, Probe
from ..train.trainer import Trainer

NOT_CERTIFIED = "not certified"


@dataclass(frozen=True)
class SavedLora:
    """A LoRA that was saved: its file, its tensors as ComfyUI's LORA_MODEL, its certificate, and a note on its form.

    ``problem`` says why the certificate does not hold; it is empty if it holds or was not made.
    """

    path: Path
    tensors: dict[str, Tensor]
    certificate: str
    note: str
    problem: str = ""


def save_adapters(trainer: Trainer, path: Path, metadata: dict[str, str], certify: bool = True) -> SavedLora:
    """Write the adapters as they are now to ``path`` (for peft a folder), with the certificate in the metadata.

    The file is written once and loaded back, to compare it with the adapters, and written again with the result. If
    the certificate does not hold, the file stays; the caller decides what to do about ``problem``.
    """
    options, model = trainer.config.save, trainer.model
    parts, weights = trainer.adapters.parts(), lora.weights(model)
    exported = files.export(parts, options.format, options.precision, options.plain_rank, weights, trainer.device)
    result, problem = NOT_CERTIFIED, ""
    written = files.save_as(exported, path, metadata)
    if certify and options.certificate:
        certified = _certified(trainer, exported, written)
        result = str(certified)
        try:
            certificate.require(certified, model, exported.parts, written)
        except UserError as error:
            problem = str(error)
    written = files.save_as(exported, path, {**metadata, "flux2_train.certificate": result})
    decomposed = any(map(is_dora, exported.parts.values()))
    wired = options.format == "comfyui" or (options.format == "diffusers" and not decomposed)
    wire = exported if wired else files.export(parts, weights=weights)
    return SavedLora(written, wire.tensors, result, exported.note.removeprefix(", "), problem)


def _certified(trainer: Trainer, exported: files.Exported, path: Path) -> Certificate:
    """Compare the file with the live adapters, or with the plain LoRA made from them, whose error ``note`` states."""
    deltas, options = trainer.adapters.deltas(), trainer.config.save
    if options.plain_rank:
        deltas = {name: _delta(part) for name, part in exported.parts.items()}
    return certificate.certify(trainer.model, deltas, exported.parts, path, _probe(trainer), options.precision)


def _delta(part: Part) -> Delta:
    return lambda x, y, base: mapped(part, lambda tensor: tensor.to(x))(x)


def _probe(trainer: Trainer) -> Probe:
    """The first sample, cropped to a few tokens, at t = 0.5."""
    sample: Sample = trainer.samples[0]
    latent = sample.latent[..., :LARGEST_LATENT, :LARGEST_LATENT].float()
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
    condition = Condition(sample.embeds, guidance=trainer.config.guidance.guidance)
    return Probe(0.5 * latent + 0.5 * noise, torch.tensor([0.5]), condition)
