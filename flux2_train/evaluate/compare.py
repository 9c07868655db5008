"""LoRAs side by side: every one at every strength, from one seed, in one labelled picture."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence

import torch
from PIL import Image
from torch import Tensor

from ..errors import UserError
from ..host.lora import apply as lora
from ..host.sampling import sample as sampling
from ..host.sampling.sample import PaintSettings
from . import sheets

MOST = 64  # pictures


def matching(asked: str, names: Sequence[str]) -> list[str]:
    """The names of LoRA files that ``asked`` says, line by line: a name, with or without its ending, or a pattern.

    Raises UserError naming the line that fits nothing.
    """
    found: dict[str, None] = {}
    for line in filter(None, map(str.strip, asked.splitlines())):
        fits = [name for name in (line, f"{line}.safetensors") if name in names] or fnmatch.filter(names, line)
        if not fits:
            raise UserError(f"No LoRA file is called {line!r}; write names of ComfyUI's loras folder, or patterns "
                            "such as zbot*, one per line.")  # fmt: skip
        found |= dict.fromkeys(fits)
    return list(found)


def require_few(loras: int, strengths: Sequence[float]) -> None:
    """Raise UserError where there is nothing to compare, or more than fits a picture."""
    if not loras:
        raise UserError("Compare LoRAs has no LoRA: wire one into 'lora', write file names or name a run.")
    if not strengths:
        raise UserError("strengths is empty; write numbers with commas between them, such as 0.5, 1.")
    if loras * len(strengths) > MOST:
        raise UserError(
            f"{loras} LoRAs at {len(strengths)} strengths are {loras * len(strengths)} pictures; at most {MOST} fit. "
            "Name fewer files or strengths."
        )


@torch.inference_mode()
def compared(
    model,
    clip,
    vae,
    loras: Mapping[str, dict[str, Tensor]],
    strengths: Sequence[float],
    prompt: str,
    negative: str,
    settings: PaintSettings,
    mode: str = lora.AUTO,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> list[list[Tensor]]:
    """(H, W, 3) pictures: the base model's alone in a first row, then a row per LoRA with one per strength.

    ``loras`` are tensors by name, as ``adapters.read.load`` gives them. The prompt is encoded once and all pictures are
    decoded together at the end, so that each model is loaded once.
    """
    settings.require_for(model)
    positive, uncond = sampling.conditions(model, clip, prompt, negative, [], settings.guidance)
    loaded = [lora.read(model, tensors) for tensors in loras.values()]
    total, rows = 1 + len(loaded) * len(strengths), []

    def denoised(painter) -> Tensor:
        report(sum(map(len, rows)), total)
        return sampling.denoise(painter, positive, uncond, settings, sampling.interruptible, quiet=True)

    rows.append([denoised(model)])
    for each in loaded:
        rows.append([])
        for strength in strengths:
            rows[-1].append(denoised(lora.put(model, each, strength, mode)))
    report(total, total)
    return [[vae.decode(latent)[0].cpu() for latent in row] for row in rows]


def labelled(rows: list[list[Tensor]], names: Sequence[str], strengths: Sequence[float], side: int) -> Image.Image:
    """One picture of ``compared``'s: the base model's in the first column, each LoRA in a row below its name.

    Each picture has ``side`` pixels on its longer side at most; 0 keeps their size.
    """
    pictures = [[sheets.to_picture(image) for image in row] for row in rows]
    if side:
        pictures = [[sheets.small(picture, side) for picture in row] for row in pictures]
    (base,), *painted = pictures
    table = [[None if number else base, *row] for number, row in enumerate(painted)]
    return sheets.grid(table, names, ["base model", *(f"strength {strength:g}" for strength in strengths)])
