"""Measures what nano paints of the world: attributes right, likeness to exact renders, edits; and shows a sheet."""

from __future__ import annotations

import random
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from flux2_train.nano import WEIGHTS, textgen
from flux2_train.nano.overlap import OverlapAutoencoder

from . import data, flow
from .autoencoder import psnr
from .fit import scene_pictures
from .host import load_flux2, new_transformer
from .train import linear_autoencoder, trained
from .world import read, scenes, words
from .world.edits import random_edit

CHUNK = 10  # pictures sampled at once


class Tally:
    """Right and asked, by attribute."""

    def __init__(self):
        self.right, self.asked = Counter(), Counter()

    def add(self, answers: dict[str, bool]) -> None:
        """Count one picture's answers."""
        self.right.update({name: int(answer) for name, answer in answers.items()})
        self.asked.update(answers.keys())

    def share(self) -> float:
        """Share of all attributes that are right."""
        return sum(self.right.values()) / sum(self.asked.values())

    def table(self) -> str:
        """One `attribute percent` per attribute."""
        return ", ".join(f"{name} {100 * self.right[name] / self.asked[name]:.0f}" for name in sorted(self.asked))


def transformer_of(work: Path = WEIGHTS) -> nn.Module:
    """ComfyUI's Flux in fp32 with the averaged weights in ``work``, rounded as they are shipped."""
    model = new_transformer()
    model.load_state_dict({n: t.to(torch.bfloat16).float() for n, t in trained(work).items()})
    return model.requires_grad_(False)


def autoencoder_of(work: Path = WEIGHTS) -> OverlapAutoencoder:
    """The autoencoder in ``work``; its convolutions change nothing before they are trained."""
    model, path = OverlapAutoencoder(), work / "vae.safetensors"
    model.load_state_dict(load_file(path) if path.exists() else linear_autoencoder(work).state_dict(), strict=False)
    return model


def paint(
    model: nn.Module,
    autoencoder: OverlapAutoencoder,
    captions: list[str],
    size: tuple[int, int],
    seed: int = 0,
    reference: torch.Tensor | None = None,
    **sampling,
) -> list[np.ndarray]:
    """Pictures (H, W, 3) for captions, with the text padded to 64 tokens."""
    out = []
    for start in range(0, len(captions), CHUNK):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + start)  # so that parts may be painted apart
        part = captions[start : start + CHUNK]
        noise = torch.randn(len(part), 128, size[1] // 16, size[0] // 16, generator=generator)
        texts = [flow.text(c) for c in (part, [""] * len(part))]
        known = None if reference is None else reference[start : start + CHUNK]
        latents = flow.sample(model, noise, *texts, reference=known, **sampling)
        out += data.to_pictures(autoencoder.decode(latents))
    return out


def held_out_prompts(count: int, seed: int = 1) -> list[scenes.Spec]:
    """Specs that training never shows."""
    rng = random.Random(seed)
    return [scenes.random_spec(rng, held_out=True) for _ in range(count)]


def compared(specs: Sequence[scenes.Spec], pictures: Sequence[np.ndarray]) -> tuple[Tally, float]:
    """Attributes right, and the median likeness of the pictures to exact renders of what is read in them."""
    tally, found = Tally(), [read.read(picture) for picture in pictures]
    for spec, other in zip(specs, found, strict=True):
        tally.add(read.attributes(spec, other))
    return tally, statistics.median(map(read.likeness, pictures, found))


def reconstruction(autoencoder: OverlapAutoencoder, size: tuple[int, int], count: int) -> float:
    """Peak signal-to-noise ratio in dB on fresh scenes."""
    pixels = data.to_pixels(scene_pictures(count, size, seed=4))
    return psnr(pixels, autoencoder.decode(autoencoder.encode(pixels)))


def load_seconds(times: int = 3) -> list[float]:
    """Seconds that Load FLUX.2 takes for nano's three parts, by turns; the first may have to write its files."""
    load_flux2()

    def once() -> float:
        started = time.perf_counter()
        load_flux2()
        return time.perf_counter() - started

    return [once() for _ in range(times)]


def score(work: Path, count: int = 200, **sampling) -> None:
    """Print every figure of the transformer and the autoencoder in ``work``."""
    print(f"text encoder as expected: {textgen.fingerprint(textgen.generate_text_encoder()) == textgen.SHA256}")
    print("Load FLUX.2 of the three parts that are installed: " + ", ".join(f"{each:.2f} s" for each in load_seconds()))
    model, autoencoder = transformer_of(work), autoencoder_of(work)
    specs = held_out_prompts(count)
    for size in scenes.SIZES:
        renders = [scenes.draw(spec, size) for spec in specs]
        exact, _ = compared(specs, renders)
        pictures = paint(model, autoencoder, [words.caption(spec) for spec in specs], size, **sampling)
        tally, likeness = compared(specs, pictures)
        print(
            f"{size[0]} x {size[1]}: {100 * tally.share():.1f} % of attributes right ({tally.table()}), likeness "
            f"{likeness:.3f}, scorer on real renders {100 * exact.share():.1f} %, reconstruction "
            f"{reconstruction(autoencoder, size, min(count, 100)):.1f} dB",
            flush=True,
        )
    rng = random.Random(2)
    triples = [random_edit(rng) for _ in range(max(count // 4, 1))]
    known = autoencoder.encode(data.to_pixels([scenes.draw(before, scenes.SIZES[0]) for before, _, _ in triples]))
    instructions, after = [instruction for _, instruction, _ in triples], [spec for _, _, spec in triples]
    pictures = paint(model, autoencoder, instructions, scenes.SIZES[0], reference=known, **sampling)
    tally, likeness = compared(after, pictures)
    print(f"edits: {100 * tally.share():.1f} % of attributes right ({tally.table()}), likeness {likeness:.3f}")


def sheet(work: Path, out: Path, count: int = 6, **sampling) -> None:
    """A picture of held-out prompts painted: a row of each shape, below each the exact renders of the same prompts."""
    from PIL import Image

    model, autoencoder, rows = transformer_of(work), autoencoder_of(work), []
    for i, size in enumerate(scenes.SIZES):
        specs = held_out_prompts(count, seed=10 + i)
        pictures = paint(model, autoencoder, [words.caption(spec) for spec in specs], size, **sampling)
        rows += [pictures, [scenes.draw(spec, size) for spec in specs]]
    framed = [np.concatenate([np.pad(p, ((2, 2), (2, 2), (0, 0)), constant_values=1) for p in row], 1) for row in rows]
    width = max(row.shape[1] for row in framed)
    whole = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=1) for row in framed]
    Image.fromarray((np.concatenate(whole) * 255).round().astype(np.uint8)).save(out)
