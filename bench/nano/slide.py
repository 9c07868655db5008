"""Measures whether a size slider, learned by nano from pairs of a small and a large object, moves the size.

For each seed and strength: the part of the picture that the object covers, the mean over new prompts.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from . import score
from .host import load_flux2, use_comfyui
from .learn import demo_settings, merged
from .world import scenes, words
from .world.brush import lay
from .world.concept import save
from .world.scenery import draw_scenery
from .world.scenes import Spec

SIZE = scenes.SIZES[0]
SMALL, LARGE = 0.65, 1.4  # of the size that nano knows
STRENGTHS = (-1.0, -0.5, 0.0, 0.5, 1.0)
VISIBLE = 0.12  # difference of a pixel, of 1, from the scene without the object


def one_object(rng: random.Random) -> Spec:
    """A scene of one object; its caption says nothing of the size."""
    while (spec := scenes.random_spec(rng)).kind != "one":
        pass
    return spec


def of_size(spec: Spec, factor: float) -> np.ndarray:
    """(H, W, 3): the scene with its object larger or smaller, on the same ground and around the same middle."""
    picture = empty(spec)
    sprite, (left, top) = scenes.sprite(spec.objects[0]), scenes.corners(spec, SIZE)[0]
    height, width = (round(side * factor) for side in sprite.shape[:2])
    scaled = np.stack([_resized(sprite[..., i], width, height) for i in range(4)], -1)
    left, top = left + (sprite.shape[1] - width) // 2, top + sprite.shape[0] - height
    inside = scaled[max(-top, 0) :, max(-left, 0) :][: SIZE[1] - max(top, 0), : SIZE[0] - max(left, 0)]
    lay(picture, inside, max(left, 0), max(top, 0))
    return picture


def empty(spec: Spec) -> np.ndarray:
    """(H, W, 3): the scene without its objects."""
    return draw_scenery(*SIZE, spec.sky, spec.ground).copy()


def write_pairs(folder: Path, count: int = 16, seed: int = 0) -> None:
    """Pictures with the large object in FOLDER/after, the same ones with the small object in FOLDER/before."""
    rng = random.Random(seed)
    for number in range(1, count + 1):
        spec = one_object(rng)
        for name, factor in (("after", LARGE), ("before", SMALL)):
            (folder / name).mkdir(parents=True, exist_ok=True)
            save(of_size(spec, factor), folder / name / f"{number:02}.png")
        (folder / "after" / f"{number:02}.txt").write_text(words.caption(spec) + "\n", encoding="utf-8")


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


def covered(spec: Spec, picture: np.ndarray) -> float:
    """The part of a picture, in percent, that differs from the scene without its object."""
    return 100 * float((np.abs(picture - empty(spec)).max(-1) > VISIBLE).mean())


def slide(seeds: int, count: int, steps: int) -> None:
    """Print a line per seed: what the object covers at each strength, on prompts that were not taught."""
    base, autoencoder, rng = score.transformer_of(), score.autoencoder_of(), random.Random(1000)
    probes = [one_object(rng) for _ in range(count)]
    captions = [words.caption(spec) for spec in probes]
    for seed in range(seeds):
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            lora = train_slider(seed, Path(folder), steps)
        seconds, measured = time.perf_counter() - started, []
        for strength in STRENGTHS:
            scaled = {k: v * strength if ".lora_B." in k else v for k, v in lora.items()}
            pictures = score.paint(merged(base, scaled), autoencoder, captions, SIZE)
            measured.append(statistics.mean(map(covered, probes, pictures)))
        line = ", ".join(f"{strength:+g}: {each:.1f} %" for strength, each in zip(STRENGTHS, measured, strict=True))
        print(f"slider seed {seed}: the object covers, at {line}; {seconds:.0f} s of training", flush=True)


def _resized(part: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.asarray(Image.fromarray(np.ascontiguousarray(part)).resize((width, height), Image.Resampling.BILINEAR))
