"""Compares LoRAs: every LoRA at every strength with the same seed, in one labelled picture."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence

import torch
from PIL import Image
from torch import Tensor

from ..errors import UserError
from ..host.graph_types import CLIP, VAE, ModelPatcher
from ..host.lora import apply as lora
from ..host.sampling import sample as sampling
from ..host.sampling.sample import PaintSettings
from . import sheets

MOST = 64  # pictures of one comparison


def matching(lines: str, names: Sequence[str]) -> list[str]:
    """Those of ``names`` that ``lines`` choose. A line is a file's name, with or without its ending, or a pattern.

    Raises UserError with the line that matches no name.
    """
    chosen: dict[str, None] = {}
    for line in filter(None, map(str.strip, lines.splitlines())):
        fits = [name for name in (line, f"{line}.safetensors") if name in names] or fnmatch.filter(names, line)
        if not fits:
            raise UserError(f"No LoRA file is called {line!r}; write names of ComfyUI's loras folder, or patterns "
                            "such as zbot*, one per line.")  # fmt: skip
        chosen |= dict.fromkeys(fits)
    return list(chosen)


def require_few(loras: int, strengths: Sequence[float]) -> None:
    """Raise UserError if there is nothing to compare, or more than one picture can hold."""
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
    model: ModelPatcher,
    clip: CLIP,
    vae: VAE,
    loras: Mapping[str, dict[str, Tensor]],
    strengths: Sequence[float],
    prompt: str,
    negative: str,
    settings: PaintSettings,
    mode: str = lora.AUTO,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> list[list[Tensor]]:
    """Rows of (H, W, 3) pictures: the first row is the base model's one picture, then one row per LoRA by strength.

    ``loras`` holds the tensors of each LoRA by its name, as ``adapters.read.load`` returns them. The prompt is encoded
    first and all pictures are decoded at the end, so that each model is loaded only once.
    """
    settings.require_for(model)
    positive, uncond = sampling.conditions(model, clip, prompt, negative, [], settings.guidance)
    loaded = [lora.read(model, tensors) for tensors in loras.values()]
    total, rows = 1 + len(loaded) * len(strengths), []

    def denoised(patched: ModelPatcher) -> Tensor:
        report(sum(map(len, rows)), total)
        return sampling.denoise(patched, positive, uncond, settings, sampling.interruptible, quiet=True)

    rows.append([denoised(model)])
    for each in loaded:
        rows.append([])
        for strength in strengths:
            rows[-1].append(denoised(lora.put(model, each, strength, mode)))
    report(total, total)
    return [[vae.decode(latent)[0].cpu() for latent in row] for row in rows]


def labelled(rows: list[list[Tensor]], names: Sequence[str], strengths: Sequence[float], side: int) -> Image.Image:
    """One picture of the rows of ``compared``: the base model in the first column, each LoRA in a row below its name.

    Each picture has at most ``side`` pixels on its longer side; 0 keeps its size.
    """
    pictures = [[sheets.to_picture(image) for image in row] for row in rows]
    if side:
        pictures = [[sheets.small(picture, side) for picture in row] for row in pictures]
    (base,), *painted = pictures
    table = [[None if number else base, *row] for number, row in enumerate(painted)]
    columns = ["base model", *(f"strength {strength:g}" for strength in strengths)]
    return sheets.grid(table, names, columns, names_from=1)
