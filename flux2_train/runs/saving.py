"""Saves the trained adapters to a file, and checks that the file acts as they do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..adapters import files
from ..adapters.dora import is_dora
from ..adapters.parts import Delta, Part, mapped
from ..atomic import apart, sweep
from ..bounded import reason
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


def save_adapters(
    trainer: Trainer, folder: Path, name: str, metadata: dict[str, str], certify: bool = True
) -> SavedLora:
    """Write the adapters as they are now to ``folder``, with the certificate in the metadata.

    The file (for peft a folder) is called ``name``, or ``name_2`` and so on where that is taken. It is written under
    another name and loaded back, to compare it with the adapters, and written again with the result. Only then it gets
    its name: whatever ends the process before leaves nothing that could be taken for a whole LoRA. If the certificate
    does not hold, the file stays; the caller decides what to do about ``problem``.
    """
    options, model = trainer.config.save, trainer.model
    parts, weights = trainer.adapters.parts(), lora.weights(model)
    exported = files.export(parts, options.format, options.precision, options.plain_rank, weights, trainer.device)
    result, problem = NOT_CERTIFIED, ""
    with _apart(folder, name) as place:
        draft = files.path_of(place, name, options.format)
        if certify and options.certificate:
            result, problem = _checked(trainer, exported, files.save_as(exported, draft, metadata))
        written = files.save_as(exported, draft, {**metadata, "flux2_train.certificate": result})
        path = files.place(draft, folder, name, options.format)
    path = path / written.name if written.parent != place else path
    decomposed = any(map(is_dora, exported.parts.values()))
    wired = options.format == "comfyui" or (options.format == "diffusers" and not decomposed)
    wire = exported if wired else files.export(parts, weights=weights)
    return SavedLora(path, wire.tensors, result, exported.note.removeprefix(", "), problem)


@contextmanager
def _apart(folder: Path, name: str) -> Iterator[Path]:
    """A folder for the draft. Raises UserError if the LoRA's folder cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        with apart(folder / name) as place:
            yield place
    except OSError as error:
        raise UserError(
            f"The LoRA {name} could not be written to {folder} ({reason(error)}): make room there, or make it a folder "
            "that can be written."
        ) from error


def _checked(trainer: Trainer, exported: files.Exported, path: Path) -> tuple[str, str]:
    """The certificate of the written draft in words, and what is wrong if it does not hold."""
    certified = _certified(trainer, exported, path)
    if certified is None:
        return f"{NOT_CERTIFIED}: no sample has finite latents and embeds", ""
    try:
        certificate.require(certified, trainer.model, exported.parts, path)
    except UserError as error:
        return str(certified), str(error)
    return str(certified), ""


def _certified(trainer: Trainer, exported: files.Exported, path: Path) -> Certificate | None:
    """Compare the file with the live adapters, or with the plain LoRA made from them, whose error ``note`` states.

    None if there is no sample to compare them on.
    """
    deltas, options = trainer.adapters.deltas(), trainer.config.save
    if options.plain_rank:
        deltas = {name: _delta(part) for name, part in exported.parts.items()}
    probe = _probe(trainer)
    return probe and certificate.certify(trainer.model, deltas, exported.parts, path, probe, options.precision)


def _delta(part: Part) -> Delta:
    return lambda x, y, base: mapped(part, lambda tensor: tensor.to(x))(x)


def _probe(trainer: Trainer) -> Probe | None:
    """The first sample whose numbers are finite, cropped to a few tokens, at t = 0.5; None if there is none."""
    sample = next(filter(_is_finite, trainer.samples), None)
    if sample is None:
        return None
    latent = sample.latent[..., :LARGEST_LATENT, :LARGEST_LATENT].float()
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
    condition = Condition(sample.embeds, guidance=trainer.config.guidance.guidance)
    return Probe(0.5 * latent + 0.5 * noise, torch.tensor([0.5]), condition)


def _is_finite(sample: Sample) -> bool:
    return bool(sample.latent.isfinite().all() and sample.embeds.isfinite().all())
