"""Measures whether a size slider, learned by nano from pairs of a small and a large object, moves the size.

For each seed and strength: the part of the picture that has the object's colour, the mean over new prompts.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from . import concepts, scenes, score
from .detect import nearest_colour
from .fit import load_autoencoder
from .host import load_flux2, use_comfyui
from .learn import demo_settings, merged
from .render import COLOURS, Scene, draw

SMALL, LARGE = 0.65, 1.4  # of the size that nano knows
STRENGTHS = (-1.0, -0.5, 0.0, 0.5, 1.0)


def scene_of(rng: random.Random) -> tuple[str, Scene]:
    """A caption of one object, which says nothing of its size, and its scene."""
    while True:
        spec = scenes.random_spec(rng)
        if spec.kind == "one":
            return scenes.caption(spec), scenes.lay_out(spec, scenes.SIZES[0], rng)


def of_size(scene: Scene, factor: float) -> Scene:
    """The scene with objects of another size in their places."""
    return replace(scene, things=tuple(replace(thing, radius=thing.radius * factor) for thing in scene.things))


def write_pairs(folder: Path, count: int = 16, seed: int = 0) -> None:
    """Pictures with the large object in FOLDER/after, the same ones with the small object in FOLDER/before."""
    rng = random.Random(seed)
    for number in range(1, count + 1):
        caption, scene = scene_of(rng)
        for name, factor in (("after", LARGE), ("before", SMALL)):
            (folder / name).mkdir(parents=True, exist_ok=True)
            concepts._save(draw(of_size(scene, factor)), folder / name / f"{number:02}.png")
        (folder / "after" / f"{number:02}.txt").write_text(caption + "\n", encoding="utf-8")


def train_slider(seed: int, folder: Path, steps: int) -> dict[str, torch.Tensor]:
    """A size slider of ``steps`` steps, fp32, otherwise with the demo's settings and without preservation."""
    use_comfyui()
    from bench.encoding import encoded
    from flux2_train.adapters import write
    from flux2_train.data.folder import read_folder
    from flux2_train.flavours import FLAVOURS
    from flux2_train.runs.prepare import new_trainer
    from flux2_train.settings import job

    write_pairs(folder)
    dataset = {"folder": folder / "after", "references": [folder / "before"], "resolution": FLAVOURS["nano"].resolution,
               "reference_options": {"kind": "strict"}}  # fmt: skip
    training = {**demo_settings(), "seed": seed, "steps": steps, "validation_items": 0, "preservation": 0.0,
                "slider": {"slider": "pairs"}}  # fmt: skip
    made = job.read({"dataset": [dataset], "training": training})
    model, clip, vae = load_flux2()
    with torch.inference_mode():
        trainer = new_trainer(model, *encoded(read_folder(made.dataset[0]), clip, vae), made.training)
        with closing(trainer.run()) as run:
            for _ in run:
                pass
    return write.tensors(trainer.adapters.parts(), "comfyui", torch.float32)


def share(scene: Scene, picture: np.ndarray) -> float:
    """The part of a picture, in percent, that has the colour of the scene's object."""
    colour = list(COLOURS).index(scene.things[0].colour)
    return 100 * float((nearest_colour(picture) == colour).mean())


def slide(seeds: int, count: int, steps: int, short: bool) -> None:
    """Print a line per seed: the object's share of the picture at each strength, on prompts it was not taught with."""
    base, autoencoder, rng = score.load_transformer(), load_autoencoder(), random.Random(1000)
    probes = [scene_of(rng) for _ in range(count)]
    for seed in range(seeds):
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            lora = train_slider(seed, Path(folder), steps)
        seconds, found = time.perf_counter() - started, []
        for strength in STRENGTHS:
            scaled = {k: v * strength if ".lora_B." in k else v for k, v in lora.items()}
            pictures = score.paint(
                merged(base, scaled), autoencoder, [c for c, _ in probes], scenes.SIZES[0], short=short
            )
            found.append(statistics.mean(share(scene, p) for (_, scene), p in zip(probes, pictures, strict=True)))
        told = ", ".join(f"{strength:+g}: {each:.1f} %" for strength, each in zip(STRENGTHS, found, strict=True))
        print(f"slider seed {seed}: object's share of the picture at {told}; {seconds:.0f} s of training", flush=True)
