"""Does a LoRA of the demo's length learn a concept, and only with its trigger? It is trained as the node trains it.

For each concept and seed: the concept's score of the base model, of the LoRA, and of the LoRA without the trigger in
the prompt, each the mean over the same probes (0 nothing of the concept, 100 a real render).
"""

from __future__ import annotations

import copy
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from . import data, score
from .host import ROOT
from .world import concepts

if TYPE_CHECKING:
    from flux2_train.settings.job import Job

DEMO = ROOT / "workflows" / "api" / "flux2_lora_nano.json"
# What takes the trigger's place in class captions; an edit has no subject, so it gets an instruction of its own.
CLASS_WORDS = {"edit": "same"}


def demo_settings() -> dict:
    """LoRA Trainer's settings in the shipped workflow."""
    trainer = next(n for n in json.loads(DEMO.read_text()).values() if n["class_type"] == "Flux2LoraTrainer")
    inputs = {name: value for name, value in trainer["inputs"].items() if name != "resume"}  # which is no setting
    return {name: value for name, value in inputs.items() if not isinstance(value, list)}


def job_of(name: str, seed: int, folder: Path, settings: Sequence[str] = ()) -> Job:
    """The demo's job on the concept's data set in ``folder``, with ``settings`` such as ``training.rank=8``."""
    from flux2_train.flavours import FLAVOURS
    from flux2_train.settings import job

    concept, before = concepts.CONCEPTS[name], folder / f"{name}-reference"
    dataset = {
        "folder": folder / name, "resolution": FLAVOURS["nano"].resolution, "trigger": concept.trigger,
        "class_word": CLASS_WORDS.get(name, concept.class_word), "references": [before] if before.is_dir() else [],
    }  # fmt: skip
    values = {"dataset": [dataset], "training": {**demo_settings(), "seed": seed, "validation_items": 0}}
    for setting in settings:
        job.put(values, setting)
    return job.read(values)


def merged(base: nn.Module, lora: dict[str, torch.Tensor]) -> nn.Module:
    """A copy of the transformer with ``B A`` added to its weights."""
    model = copy.deepcopy(base)
    for key, down in lora.items():
        if key.endswith(".lora_A.weight"):
            layer = model.get_submodule(key.removeprefix("diffusion_model.").removesuffix(".lora_A.weight"))
            layer.weight += lora[key.replace("lora_A", "lora_B")] @ down
    return model


def concept_pictures(name: str, model: nn.Module, trigger: bool, count: int, **sampling) -> tuple[list, list]:
    """``count`` of the concept's probes, and the pictures (H, W, 3) that the model paints of them."""
    autoencoder, examples = score.autoencoder_of(), concepts.probes(name, count, trigger)
    references = [e.reference for e in examples if e.reference is not None]
    known = autoencoder.encode(data.to_pixels(references)) if references else None
    captions = [e.caption for e in examples]
    return examples, score.paint(model, autoencoder, captions, concepts.SIZE, reference=known, **sampling)


def concept_score(name: str, examples: list, pictures: list) -> float:
    """Mean score of the pictures, 0 (nothing of the concept) to 100 (a real render)."""
    concept = concepts.CONCEPTS[name]
    return 100 * statistics.mean(concept.score(e, p) for e, p in zip(examples, pictures, strict=True))


def learn(names: list[str], seeds: int, count: int, settings: Sequence[str] = ()) -> None:
    """Print a line per concept and seed; ``settings`` replace those of the demo. ``bench.learning`` measures more."""
    from bench.learning.cell import Protocol, adapted, teach

    for name in names:

        def scored(model: nn.Module, trigger: bool, name: str = name) -> float:
            return concept_score(name, *concept_pictures(name, model, trigger, count))

        before = scored(adapted({}), True)
        for seed in range(seeds):
            taught = teach(settings, seed, Protocol(name))
            model = adapted(taught.changes)
            found, leak = scored(model, True), scored(model, False)
            print(
                f"{name} seed {seed}: base {before:.0f}, LoRA {found:.0f} ({found - before:+.0f}), without trigger "
                f"{leak:.0f} ({leak - before:+.0f}); {taught.seconds:.0f} s of training",
                flush=True,
            )
