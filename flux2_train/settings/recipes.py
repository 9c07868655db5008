"""Recipes: one name for a set of training settings, each of which can still be changed.

``style`` to ``edit`` follow the rows of AI Toolkit's guide for FLUX.2; ``ai-toolkit``, ``simpletuner`` and ``musubi``
are what those three programs document for FLUX.2. docs/objectives.md lists what they do and this pack does not.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..flavours import FLAVOURS
from .adapter import AdapterSettings
from .optimizer import OptimizerSettings
from .timesteps import TimestepSettings
from .training import NO_RECIPE


@dataclass(frozen=True)
class Recipe:
    """``face`` are values of LoRA Trainer's own inputs, ``sections`` those of its option nodes."""

    text: str
    face: dict[str, float | int] = field(default_factory=dict)
    sections: dict[str, object] = field(default_factory=dict)

    @property
    def values(self) -> dict[str, object]:
        """Everything the recipe sets, by the names in TrainingSettings."""
        return {**self.face, **self.sections}


_WEIGHTED = TimestepSettings(distribution="weighted", shift="none")


def _guide(text: str, rank: int, steps: int) -> Recipe:
    face = {"rank": rank, "alpha": 0.0, "steps": steps, "learning_rate": 1e-4, "batch": 1}
    return Recipe(text, face, {"timesteps": _WEIGHTED, "optimizer": OptimizerSettings(weight_decay=1e-4)})


RECIPES: dict[str, Recipe] = {
    NO_RECIPE: Recipe("the values as they stand"),
    "style": _guide("15 to 30 images of one style; captions say what is shown, not how", 32, 1500),
    "character": _guide("20 to 60 images of one person; trigger and class word", 32, 2000),
    "object": _guide("15 to 40 images of one thing; high rank for exact shapes", 64, 1500),
    "edit": _guide("50 to 200 pairs of an image and its reference; captions say what is done", 32, 2500),
    "ai-toolkit": Recipe(
        "AI Toolkit's defaults for FLUX.2",
        {"rank": 32, "alpha": 0.0, "steps": 3000, "learning_rate": 1e-4, "batch": 1},
        {"timesteps": _WEIGHTED, "optimizer": OptimizerSettings("adamw8bit", eps=1e-6, weight_decay=1e-4)},
    ),
    "simpletuner": Recipe(
        "SimpleTuner's FLUX.2 quick start",
        {"rank": 16, "alpha": 0.0, "steps": 10_000, "learning_rate": 1e-4, "batch": 1},
        {
            "timesteps": TimestepSettings(shift="constant", shift_factor=3.0),
            "optimizer": OptimizerSettings(),
            "adapter": AdapterSettings(dropout=0.1),
        },
    ),
    "musubi": Recipe(
        "musubi-tuner's FLUX.2 example: 16 epochs, alpha 1",
        {"rank": 32, "alpha": 1.0, "steps": 0, "epochs": 16, "learning_rate": 1e-4, "batch": 1, "seed": 42},
        {"timesteps": TimestepSettings(shift="linear"), "optimizer": OptimizerSettings("adamw8bit")},
    ),
}


def face_on(recipe: Recipe, flavour: str) -> dict[str, float | int]:
    """What a recipe sets on LoRA Trainer where that flavour is trained. A recipe that counts epochs keeps doing so."""
    own = FLAVOURS[flavour].recipe
    return {name: own.get(name, value) if value else value for name, value in recipe.face.items()}


def combined(name: str, face: dict, sections: dict) -> dict:
    """Values for TrainingSettings: the recipe's, replaced by LoRA Trainer's own, then by those of option nodes."""
    return {**RECIPES[name].values, **face, **sections, "recipe": name}
