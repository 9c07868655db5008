"""Measures nano: prompt adherence on held-out prompts, edits, the scorer itself, reconstruction, load time, sizes."""

import random
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from flux2_train.nano import textgen

from . import data, flow, render, scenes
from .adherence import attributes
from .autoencoder import PatchAutoencoder, psnr
from .fit import VAE, load_autoencoder, scene_pictures
from .host import as_in_module, load_flux2, new_transformer
from .train import DIT

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


def load_transformer(path: Path = DIT, prefix: str = "") -> nn.Module:
    """ComfyUI's Flux in fp32 with the weights of a file, or of the part of a checkpoint with a prefix."""
    model = new_transformer()
    weights = {n.removeprefix(prefix): t.float() for n, t in load_file(path).items() if n.startswith(prefix)}
    model.load_state_dict(as_in_module(weights))
    return model.requires_grad_(False)


def held_out_prompts(count: int = 200, seed: int = 1) -> list[scenes.Spec]:
    """Specs that training never shows."""
    rng = random.Random(seed)
    return [scenes.random_spec(rng, held_out=True) for _ in range(count)]


def paint(
    model: nn.Module,
    autoencoder: PatchAutoencoder,
    captions: list[str],
    size: tuple[int, int],
    seed: int = 0,
    short: bool = False,
    reference: torch.Tensor | None = None,
    **sampling,
) -> list[np.ndarray]:
    """Pictures (H, W, 3) for captions; `short` samples the padding instead of running all 512 text positions."""
    out = []
    for start in range(0, len(captions), CHUNK):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + start)  # so that parts may be painted apart
        part = captions[start : start + CHUNK]
        noise = torch.randn(len(part), 128, size[1] // 16, size[0] // 16, generator=generator)
        texts = [flow.short_text(c, generator, 24) if short else flow.full_text(c) for c in (part, [""] * len(part))]
        known = None if reference is None else reference[start : start + CHUNK]
        out += data.to_pictures(autoencoder.decode(flow.sample(model, noise, *texts, reference=known, **sampling)))
    return out


def adherence(
    model: nn.Module, autoencoder: PatchAutoencoder, specs: list[scenes.Spec], size=scenes.SIZES[0], **sampling
) -> Tally:
    """Attributes right in the pictures painted for `specs`."""
    tally = Tally()
    pictures = paint(model, autoencoder, [scenes.caption(spec) for spec in specs], size, **sampling)
    for spec, picture in zip(specs, pictures, strict=True):
        tally.add(attributes(spec, picture))
    return tally


def edits(model: nn.Module, autoencoder: PatchAutoencoder, count: int, **sampling) -> Tally:
    """Attributes of the after-picture right, when the model edits the before-picture by instruction."""
    tally, rng = Tally(), random.Random(2)
    triples = [scenes.random_edit(rng) for _ in range(count)]
    before = [render.draw(scenes.lay_out(spec, scenes.SIZES[0], rng)) for spec, _, _ in triples]
    pictures = paint(
        model,
        autoencoder,
        [words for _, words, _ in triples],
        scenes.SIZES[0],
        reference=autoencoder.encode(data.to_pixels(before)),
        **sampling,
    )
    for (_, _, after), picture in zip(triples, pictures, strict=True):
        tally.add(attributes(after, picture))
    return tally


@torch.no_grad()
def text_losses(model: nn.Module, autoencoder: PatchAutoencoder, batches: int = 4) -> tuple[float, float]:
    """Mean loss with sampled padding, as in training, and with all 512 text positions, as in use."""
    short = full = 0.0
    for step in range(batches):
        batch = data.batch(-1, step, autoencoder)
        words = flow.short_text(batch.captions, torch.Generator().manual_seed(step))
        for_loss = (torch.Generator().manual_seed(step) for _ in range(2))
        short += flow.loss(model, batch.latents, words, batch.reference, next(for_loss)).item() / batches
        full += (
            flow.loss(model, batch.latents, flow.full_text(batch.captions), batch.reference, next(for_loss)).item()
            / batches
        )
    return short, full


def scorer_accuracy(count: int = 200) -> float:
    """Share of attributes that the scorer reads rightly from real renders, over all sizes."""
    tally, rng = Tally(), random.Random(3)
    for i in range(count):
        spec = scenes.random_spec(rng, held_out=bool(i % 2))
        tally.add(attributes(spec, render.draw(scenes.lay_out(spec, scenes.SIZES[i % 3], rng))))
    return tally.share()


def reconstruction(autoencoder: PatchAutoencoder, count: int = 100) -> float:
    """PSNR in dB over fresh scenes of the three sizes (mean of the sizes)."""
    values = []
    for size in scenes.SIZES:
        pixels = data.to_pixels(scene_pictures(count, size, seed=4))
        values.append(psnr(pixels, autoencoder.decode(autoencoder.encode(pixels))))
    return sum(values) / len(values)


def load_seconds(times: int = 3) -> list[float]:
    """Seconds that Load FLUX.2 takes for nano's three parts, by turns; the first may have to write its files."""
    load_flux2()

    def once() -> float:
        started = time.perf_counter()
        load_flux2()
        return time.perf_counter() - started

    return [once() for _ in range(times)]


def score(count: int = 200, short: bool = False, model: nn.Module | None = None) -> None:
    """Print every figure."""
    started = time.perf_counter()
    weights = textgen.generate_text_encoder()
    generated = time.perf_counter() - started
    print(
        f"text encoder: generated in {generated:.2f} s, sha256 as expected: "
        f"{textgen.fingerprint(weights) == textgen.SHA256}"
    )
    print("Load FLUX.2 of all three parts: " + ", ".join(f"{seconds:.2f} s" for seconds in load_seconds()))
    autoencoder, model = load_autoencoder(), model or load_transformer()
    print("file sizes: " + ", ".join(f"{p.name} {p.stat().st_size / 1e6:.2f} MB" for p in (DIT, VAE) if p.exists()))
    print(f"scorer on real renders: {100 * scorer_accuracy():.2f} %")
    print(f"reconstruction: {reconstruction(autoencoder):.2f} dB")
    print(
        "loss with sampled padding and with all 512 text positions: "
        + ", ".join(f"{value:.4f}" for value in text_losses(model, autoencoder))
    )
    tally = adherence(model, autoencoder, held_out_prompts(count), short=short)
    print(
        f"attributes right on {count} held-out prompts, 20 steps, guidance {flow.GUIDANCE}: "
        f"{100 * tally.share():.1f} % ({tally.table()})"
    )
    for size in scenes.SIZES[1:]:
        tally = adherence(model, autoencoder, held_out_prompts(max(count // 10, 10), seed=5), size, short=short)
        print(f"the same at {size[0]} x {size[1]}: {100 * tally.share():.1f} % ({tally.table()})")
    tally = edits(model, autoencoder, max(count // 10, 10), short=short)
    print(f"edits: {100 * tally.share():.1f} % ({tally.table()})")
