"""One cell of the bench: teaches nano a concept with one setting and one seed, and scores what nano then paints."""

from __future__ import annotations

import copy
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from bench.nano import learn, score
from bench.nano.host import use_comfyui
from bench.nano.world import concepts, words

from .trainers import Changes, Taught, Watch, by_diffusers, by_node, by_trainer

HELD_OUT = 4  # pictures of the concept on which the validation loss is measured
FEW = 4  # steps of a quick sample
OWN = ("pictures", "trainer", "recipe", "validate", "sample")  # settings of the bench itself
FACE = ("steps", "seed")  # what "as it comes" keeps of the demo
TRAINERS = {"ours": by_trainer, "node": by_node, "diffusers": by_diffusers}


@dataclass(frozen=True)
class Protocol:
    """How each cell is measured: which concept, for how many steps (0: the demo's), and on how many prompts.

    ``prompts`` are painted for the concept, with and without its trigger, and as many held-out ones for preservation.
    """

    concept: str = "character"
    steps: int = 0
    prompts: int = 10


@dataclass(frozen=True)
class Measured:
    """What one LoRA has learned. Scores are 0 to 100; distances are mean squared differences of pixels (0 to 1).

    ``concept`` is the concept's score with the trigger, ``off`` how far its pictures are from real renders, ``few`` and
    ``few_off`` the same of pictures sampled in 4 steps instead of 20, ``leak`` the score without the trigger. ``kept``
    is the share of attributes that are right on held-out prompts, ``far`` how far those pictures are from the base
    model's at the same seeds. ``selectivity`` and ``loss`` (validation) are what the run itself has measured at its
    end, ``before`` the validation loss before its first step, None where it has not.
    """

    concept: float
    off: float
    few: float
    few_off: float
    leak: float
    kept: float
    far: float
    loss: float | None
    selectivity: float | None
    before: float | None
    steps: int
    seconds: float


def measure(settings: Sequence[str], seed: int, protocol: Protocol) -> Measured:
    """Teach and score one LoRA. Raises UserError for a setting that there is not."""
    taught = teach(settings, seed, protocol)
    scores = _scores(adapted(taught.changes, _own_settings(settings).get("sample", "")), protocol)
    return Measured(**scores, **_own(taught), steps=taught.steps, seconds=taught.seconds)


def _own(taught: Taught) -> dict[str, float | None]:
    """What the run has measured itself."""
    validation = taught.history.validation if taught.history else {}
    selectivity = taught.history.selectivity if taught.history else {}
    changed, leaked = selectivity.get(taught.steps, (0.0, 0.0))
    return {"loss": validation.get(taught.steps), "before": validation.get(0),
            "selectivity": changed / leaked if leaked else None}  # fmt: skip


def adapted(changes: Changes, precision: str = "") -> nn.Module:
    """A copy of nano's transformer, with its weights as ``precision`` rounds them, and the LoRA's changes added."""
    model = copy.deepcopy(_base(precision))
    for name, change in changes.items():
        model.get_submodule(name).weight += change
    return model


def quick_score(model: nn.Module, protocol: Protocol, trigger: bool = True) -> float:
    """The concept's score of pictures sampled in FEW steps, with the trigger or without it."""
    examples, pictures = learn.concept_pictures(protocol.concept, model, trigger, protocol.prompts, steps=FEW)
    return learn.concept_score(protocol.concept, examples, pictures)


def base_scores(protocol: Protocol) -> dict[str, float]:
    """The scores of nano without a LoRA."""
    return _scores(_base(), protocol)


def _scores(model: nn.Module, protocol: Protocol) -> dict[str, float]:
    name, count = protocol.concept, protocol.prompts
    concept, off = _concept(name, *learn.concept_pictures(name, model, True, count))
    few, few_off = _concept(name, *learn.concept_pictures(name, model, True, count, steps=FEW))
    leak, _ = _concept(name, *learn.concept_pictures(name, model, False, count))
    pictures = _held_out_pictures(model, count)
    tally, _ = score.compared(score.held_out_prompts(count), pictures)
    kept, far = 100 * tally.share(), _distance(pictures, _base_pictures(count))
    return {"concept": concept, "off": off, "few": few, "few_off": few_off, "leak": leak, "kept": kept, "far": far}


def _concept(name: str, examples: list, pictures: list) -> tuple[float, float]:
    """The pictures' score, and their mean squared difference to real renders."""
    return learn.concept_score(name, examples, pictures), _distance(pictures, [e.picture for e in examples])


def _distance(pictures: list[np.ndarray], others: list[np.ndarray]) -> float:
    return statistics.mean(float(((a - b) ** 2).mean()) for a, b in zip(pictures, others, strict=True))


def _held_out_pictures(model: nn.Module, count: int) -> list[np.ndarray]:
    captions = [words.caption(spec) for spec in score.held_out_prompts(count)]
    return score.paint(model, score.autoencoder_of(), captions, concepts.SIZE)


@cache
def _base_pictures(count: int) -> list[np.ndarray]:
    return _held_out_pictures(_base(), count)


@cache
def _base(precision: str = "") -> nn.Module:
    """nano's transformer in fp32. Its Linears have the numbers that Load FLUX.2 gives them in ``precision``."""
    model = score.transformer_of()
    if precision:
        from flux2_train.host.borrowed.borrow import linears
        from flux2_train.host.borrowed.frozen import fetched

        loaded = _loaded(precision)  # weights can be read only while this variable keeps the MODEL alive
        for name, layer in linears(loaded).items():
            with fetched(layer, torch.float32, torch.device("cpu")) as (weight, _), torch.no_grad():
                model.get_submodule(name).weight.copy_(weight)
    return model


def teach(settings: Sequence[str], seed: int, protocol: Protocol, watch: Watch | None = None) -> Taught:
    """Train on a new data set of the concept; the last pictures of it are held out. ``watch``: see ``trainers``."""
    use_comfyui()
    from bench.encoding import encoded
    from flux2_train.data.folder import read_folder

    own = _own_settings(settings)
    count = int(own.get("pictures", 16))
    with tempfile.TemporaryDirectory() as place, torch.inference_mode():
        job = _job([each for each in settings if each.split("=")[0] not in OWN], own, seed, protocol, Path(place))
        concepts.write_dataset(protocol.concept, Path(place) / protocol.concept, count + HELD_OUT)
        whole = read_folder(job.dataset[0])
        model, clip, vae = _parts(job)
        caches = [
            encoded(replace(whole, items=items), clip, vae) for items in (whole.items[:count], whole.items[count:])
        ]
        return TRAINERS[own.get("trainer", "ours")](model, *caches, job.training, watch)


def _own_settings(settings: Sequence[str]) -> dict[str, str]:
    return dict(each.split("=", 1) for each in settings if each.split("=")[0] in OWN)


def steps_of(settings: Sequence[str], protocol: Protocol) -> int:
    """How many steps a run with these settings has."""
    asked = [int(each.removeprefix("steps=")) for each in settings if each.startswith("steps=")]
    return protocol.steps or (asked or [learn.demo_settings()["steps"]])[-1]


def _job(settings: list[str], own: dict[str, str], seed: int, protocol: Protocol, place: Path):
    from flux2_train.settings.previews import ValidationLossSettings
    from flux2_train.settings.training import TrainingSettings

    before = place / f"{protocol.concept}-reference"
    if concepts.probes(protocol.concept, 1)[0].reference is not None:
        before.mkdir()
    job = learn.job_of(protocol.concept, seed, place, settings)
    training = job.training
    if "recipe" in own:
        training = replace(TrainingSettings(**{name: getattr(training, name) for name in FACE}),
                           learning_rate=training.learning_rate)  # fmt: skip
    loss = ValidationLossSettings(every=int(own.get("validate", 0)))
    return replace(job, training=replace(training, steps=protocol.steps or training.steps, validation_loss=loss))


def _parts(job) -> tuple:
    """nano's MODEL in the precision that the job asks for, CLIP and VAE."""
    from bench.nano.host import load_flux2
    from flux2_train.settings.model import ModelSettings

    model, clip, vae = load_flux2()
    if job.model and job.model.precision != ModelSettings("nano").precision:
        model = _loaded(job.model.precision)
    return model, clip, vae


def _loaded(precision: str):
    """nano's MODEL in a precision."""
    from flux2_train.host.loading import load
    from flux2_train.settings.model import ModelSettings

    chosen = replace(ModelSettings("nano"), precision=precision)
    with torch.inference_mode():  # as nodes run
        return load.load_model(load.locate_parts(chosen)[0], chosen)
