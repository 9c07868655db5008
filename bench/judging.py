"""How often the verdicts on single images are right: nano learns clean pictures with odd ones planted among them.

``python -m bench.judging --trials character:1 style:2 scene:3`` prints what was named, and writes
bench/results/judging.json. Every picture has a few small things in it that its caption does not mention, as photographs
have; without them captions would tell nano everything, and nothing would be left to memorise.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from bench.nano.strokes import SHAPES, paint_shape
from bench.nano.world import concepts, scenes, words
from bench.nano.world.concept import save
from bench.nano.world.palette import COLOURS

ROOT = Path(__file__).resolve().parents[1]
EXPECTED = {  # what each planted picture may be called
    "wrong": ("mislabelled",), "swapped a": ("mislabelled",), "swapped b": ("mislabelled",),
    "noise": ("not learnable",), "other": ("not learnable", "mislabelled"), "often": ("memorised",),
}  # fmt: skip
REPEATS = 20  # of the one that is seen often
STEPS, CLEAN = 80, 10


@dataclass(frozen=True)
class Verdict:
    """A picture by its name, what it was called and why."""

    name: str
    verdict: str
    reason: str
    fall: float
    unknown: float
    advantage: float
    nearest: float

    @property
    def planted(self) -> bool:
        return self.name in EXPECTED

    @property
    def right(self) -> bool:
        """Named as it was planted, or left alone where it is clean."""
        return self.verdict in EXPECTED.get(self.name, ("",))


def cluttered(picture: np.ndarray, rng: random.Random) -> np.ndarray:
    """With three small things at random places."""
    picture, (height, width) = picture.copy(), picture.shape[:2]
    for _ in range(3):
        x, y, radius = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(7, 12)
        paint_shape(picture, rng.choice(SHAPES), x, y, radius, rng.choice(list(COLOURS.values()))[0])
    return picture


def example(concept: str, rng: random.Random) -> concepts.Example:
    """A cluttered picture of the concept with its caption; ``scene`` is what nano knows already."""
    if concept == "scene":
        spec = scenes.random_spec(rng)
        found = concepts.Example(words.caption(spec), scenes.draw(spec, concepts.SIZE), spec)
    else:
        found = concepts.CONCEPTS[concept].example(rng, True)
    return replace(found, picture=cluttered(found.picture, rng))


def differing(concept: str, one: concepts.Example, rng: random.Random) -> concepts.Example:
    """One whose caption says something else: another kind of picture, or on another ground where captions say it."""
    while True:
        other = example(concept, rng)
        if other.caption != one.caption and (
            other.spec.ground != one.spec.ground if concept == "character" else other.spec.kind != one.spec.kind
        ):
            return other


def write(
    concept: str, seed: int, folder: Path, planted: tuple[str, ...] = tuple(EXPECTED), clean: int = CLEAN
) -> None:
    """Pictures with captions in ``folder``/once and, what is seen often, in ``folder``/often."""
    rng = random.Random(seed)
    one, wrong, noise, other, often = (example(concept, rng) for _ in range(5))
    two = differing(concept, one, rng)
    grain = np.random.default_rng(seed).random(noise.picture.shape, np.float32)
    strange = example("scene", rng)
    pictures = {f"clean {n:02}": example(concept, rng) for n in range(clean)}
    pictures |= {
        "wrong": replace(wrong, caption=differing(concept, wrong, rng).caption),
        "swapped a": replace(one, caption=two.caption), "swapped b": replace(two, caption=one.caption),
        "noise": replace(noise, picture=grain), "other": replace(other, picture=strange.picture), "often": often,
    }  # fmt: skip
    for name, found in pictures.items():
        if name in planted or name not in EXPECTED:
            place = folder / ("often" if name == "often" else "once")
            place.mkdir(parents=True, exist_ok=True)
            save(found.picture, place / f"{name}.png")
            (place / f"{name}.txt").write_text(found.caption + "\n", encoding="utf-8")


def judged(parts: tuple, folder: Path, seed: int, steps: int = STEPS) -> list[Verdict]:
    """Train on what ``write`` has written with nano's (MODEL, CLIP, VAE), and judge every picture."""
    from bench.encoding import encoded
    from flux2_train.data.folder import read_folder
    from flux2_train.evaluate.verdicts import judge
    from flux2_train.events import ImagesMeasured
    from flux2_train.runs.prepare import new_trainer
    from flux2_train.settings.dataset_folder import DatasetSettings
    from flux2_train.settings.previews import ValidationLossSettings
    from flux2_train.settings.training import TrainingSettings

    model, clip, vae = parts
    dataset = None
    for place in sorted(p for p in folder.iterdir() if p.is_dir()):
        repeats = REPEATS if place.name == "often" else 1
        settings = DatasetSettings(place, resolution=128, trigger="vorn", class_word="creature", repeats=repeats)
        found = read_folder(settings)
        dataset = found if dataset is None else dataset.chained(found)
    config = TrainingSettings(steps=steps, learning_rate=2e-3, seed=seed, validation_items=0, checkpointing=False,
                         validation_loss=ValidationLossSettings(per_image=True))  # fmt: skip
    with torch.inference_mode():
        trainer = new_trainer(model, *encoded(dataset, clip, vae), config)
        with closing(trainer.run()) as run:
            first, last = (event.images for event in run if isinstance(event, ImagesMeasured))
    return [
        Verdict(j.image.path.stem, j.verdict, j.reason, j.fall, j.unknown, j.advantage, j.nearest)
        for j in judge(first, last)
    ]


def described(trial: str, verdicts: list[Verdict]) -> str:
    """The trial in a line."""
    planted, clean = ([v for v in verdicts if v.planted == kind] for kind in (True, False))
    missed = [f"{v.name} ({v.verdict or 'not named'})" for v in planted if not v.right]
    wrong = [f"{v.name} ({v.verdict})" for v in clean if not v.right]
    return (
        f"{trial}: {len(planted) - len(missed)} of {len(planted)} planted named, {len(wrong)} of {len(clean)} clean "
        f"called odd; missed: {', '.join(missed) or 'none'}; false: {', '.join(wrong) or 'none'}"
    )


def main() -> None:
    from bench.nano.host import load_flux2

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", nargs="+", default=["character:1"], help="CONCEPT:SEED")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "judging.json")
    options = parser.parse_args()
    parts, found = load_flux2(), {}
    for trial in options.trials:
        concept, seed = trial.split(":")
        with tempfile.TemporaryDirectory() as folder:
            write(concept, int(seed), Path(folder))
            found[trial] = judged(parts, Path(folder), int(seed))
        print(described(trial, found[trial]), flush=True)
        options.out.write_text(json.dumps({t: [asdict(v) for v in vs] for t, vs in found.items()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
