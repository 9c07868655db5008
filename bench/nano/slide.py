"""Measures whether sliders that nano learns move what they should: the size from pairs, the brightness from prompts.

For each seed and strength, the mean over new prompts: the part of the picture that the object covers, in percent, or
the picture's brightness, in percent of white.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
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


def write_pairs(folder: Path, count: int = 16, seed: int = 0) -> dict:
    """Pictures with the large object in FOLDER/after, the same ones with the small object in FOLDER/before.

    Returns the data set's settings.
    """
    rng = random.Random(seed)
    for number in range(1, count + 1):
        spec = one_object(rng)
        for name, factor in (("after", LARGE), ("before", SMALL)):
            (folder / name).mkdir(parents=True, exist_ok=True)
            save(of_size(spec, factor), folder / name / f"{number:02}.png")
        (folder / "after" / f"{number:02}.txt").write_text(words.caption(spec) + "\n", encoding="utf-8")
    return {"folder": folder / "after", "references": [folder / "before"], "reference_options": {"kind": "strict"}}


def write_scenes(folder: Path, count: int = 16, seed: int = 0) -> dict:
    """Pictures of one object under any sky. Returns the data set's settings."""
    rng = random.Random(seed)
    for number in range(1, count + 1):
        spec = one_object(rng)
        save(scenes.draw(spec, SIZE), folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(words.caption(spec) + "\n", encoding="utf-8")
    return {"folder": folder}


def without_sky(spec: Spec) -> str:
    """The caption that leaves the time of day and the weather open."""
    return words.caption(spec).removesuffix(f" {words.WORDS[spec.sky][0]}")


def covered(spec: Spec, picture: np.ndarray) -> float:
    """The part of a picture, in percent, that differs from the scene without its object."""
    return 100 * float((np.abs(picture - empty(spec)).max(-1) > VISIBLE).mean())


def brightness(_: Spec, picture: np.ndarray) -> float:
    """The mean of a picture's three colours, in percent of white."""
    return 100 * float(picture.mean())


@dataclass(frozen=True)
class Slider:
    """What a slider learns from and how its effect is measured."""

    settings: dict[str, str | float]  # of Concept Slider
    write_dataset: Callable[[Path], dict]
    caption: Callable[[Spec], str]  # of a probe
    measure: Callable[[Spec, np.ndarray], float]  # of a picture of it
    says: str


SLIDERS = {
    "pairs": Slider({"slider": "pairs"}, write_pairs, words.caption, covered, "the object covers"),
    "prompts": Slider(
        {"slider": "prompts", "neutral": "a creature", "positive": "a creature on a sunny day",
         "negative": "a creature at night", "slider_guidance": 0.5},
        write_scenes, without_sky, brightness, "the picture's brightness is",
    ),
}  # fmt: skip


def train_slider(slider: Slider, seed: int, folder: Path, steps: int) -> dict[str, torch.Tensor]:
    """A slider of ``steps`` steps, fp32, otherwise with the demo's settings and without preservation."""
    use_comfyui()
    from bench.encoding import encoded
    from flux2_train.adapters import write
    from flux2_train.data.folder import read_folder
    from flux2_train.flavours import FLAVOURS
    from flux2_train.runs.prepare import new_trainer
    from flux2_train.settings import job

    dataset = {**slider.write_dataset(folder), "resolution": FLAVOURS["nano"].resolution}
    training = {**demo_settings(), "seed": seed, "steps": steps, "validation_items": 0, "preservation": 0.0,
                "slider": slider.settings}  # fmt: skip
    made = job.read({"dataset": [dataset], "training": training})
    model, clip, vae = load_flux2()
    with torch.inference_mode():
        caches = encoded(read_folder(made.dataset[0]), clip, vae, made.training.slider.texts)
        trainer = new_trainer(model, *caches, made.training)
        with closing(trainer.run()) as run:
            for _ in run:
                pass
    return write.tensors(trainer.adapters.parts(), "comfyui", torch.float32)


def slide(names: list[str], seeds: int, count: int, steps: int) -> None:
    """Print a line per slider and seed: what is measured at each strength, on prompts that were not taught."""
    base, autoencoder, rng = score.transformer_of(), score.autoencoder_of(), random.Random(1000)
    probes = [one_object(rng) for _ in range(count)]
    for name, seed in ((name, seed) for name in names for seed in range(seeds)):
        slider, started = SLIDERS[name], time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            lora = train_slider(slider, seed, Path(folder), steps)
        seconds, measured = time.perf_counter() - started, []
        for strength in STRENGTHS:
            scaled = {k: v * strength if ".lora_B." in k else v for k, v in lora.items()}
            pictures = score.paint(merged(base, scaled), autoencoder, list(map(slider.caption, probes)), SIZE)
            measured.append(statistics.mean(map(slider.measure, probes, pictures)))
        line = ", ".join(f"{strength:+g}: {each:.1f} %" for strength, each in zip(STRENGTHS, measured, strict=True))
        print(f"slider of {name}, seed {seed}: {slider.says}, at {line}; {seconds:.0f} s of training", flush=True)


def _resized(part: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.asarray(Image.fromarray(np.ascontiguousarray(part)).resize((width, height), Image.Resampling.BILINEAR))
