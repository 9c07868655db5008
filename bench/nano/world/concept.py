"""A concept that a LoRA can learn: its examples, its data set, the prompts to test with, and its score."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Concept:
    """How to make an example (from a random generator, with or without the trigger), and how to score a picture.

    An example has ``caption``, ``picture`` (H, W, 3) in [0, 1], and ``reference``: for an edit a picture, else None.
    """

    name: str
    trigger: str
    class_word: str
    example: Callable[[random.Random, bool], Any]
    score: Callable[[Any, np.ndarray], float]

    def write_dataset(self, folder: Path, count: int = 16, seed: int = 0) -> None:
        """Pictures 01.png, 02.png, ... with .txt captions; an edit's references, so named, in FOLDER-reference.

        No picture is there twice, as two scenes may be in a concept that leaves out their colours.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for number, example in enumerate(self._distinct(count, random.Random(seed)), 1):
            save(example.picture, folder / f"{number:02}.png")
            (folder / f"{number:02}.txt").write_text(example.caption + "\n", encoding="utf-8")
            if example.reference is not None:
                references = folder.with_name(folder.name + "-reference")
                references.mkdir(exist_ok=True)
                save(example.reference, references / f"{number:02}.png")

    def _distinct(self, count: int, rng: random.Random) -> list:
        examples = {}
        while len(examples) < count:
            example = self.example(rng, True)
            examples.setdefault(example.picture.tobytes(), example)
        return list(examples.values())

    def probes(self, count: int, trigger: bool = True, seed: int = 1000) -> list:
        """Examples to test with; the same ones with and without the trigger."""
        rng = random.Random(seed)
        return [self.example(rng, trigger) for _ in range(count)]


def save(picture: np.ndarray, path: Path) -> None:
    """Write a picture (H, W, 3) in [0, 1] as PNG."""
    Image.fromarray((picture * 255).round().astype(np.uint8)).save(path)
