"""One cell of the bench: teaches nano a concept with one setting and one seed, and scores what nano then paints."""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from bench.nano import learn, score
from bench.nano.host import use_comfyui
from bench.nano.world import concepts, words

HELD_OUT = 4  # pictures of the concept on which the validation loss is measured
FEW = 4  # steps of a quick sample
OWN = ("pictures", "trainer", "recipe")  # settings of the bench itself
FACE = ("steps", "seed")  # what "as it comes" keeps of the demo


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
    end, None where it has not.
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
    steps: int
    seconds: float


@dataclass(frozen=True)
class Taught:
    """A LoRA as changes of weights by layer, and what its run has measured."""

    changes: dict[str, torch.Tensor]
    loss: float | None
    selectivity: float | None
    steps: int
    seconds: float


def measure(settings: Sequence[str], seed: int, protocol: Protocol) -> Measured:
    """Teach and score one LoRA. Raises UserError for a setting that there is not."""
    taught = _taught(settings, seed, protocol)
    model = copy.deepcopy(_base())
    for name, change in taught.changes.items():
        model.get_submodule(name).weight += change
    return Measured(**_scores(model, protocol), **{k: v for k, v in asdict(taught).items() if k != "changes"})


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
def _base() -> nn.Module:
    return score.transformer_of()


def _taught(settings: Sequence[str], seed: int, protocol: Protocol) -> Taught:
    """Train on a new data set of the concept; the last pictures of it are held out."""
    use_comfyui()
    from bench.encoding import encoded
    from flux2_train.data.folder import read_folder

    own = dict(each.split("=", 1) for each in settings if each.split("=")[0] in OWN)
    count = int(own.get("pictures", 16))
    with tempfile.TemporaryDirectory() as place, torch.inference_mode():
        job = _job([each for each in settings if each.split("=")[0] not in OWN], own, seed, protocol, Path(place))
        concepts.write_dataset(protocol.concept, Path(place) / protocol.concept, count + HELD_OUT)
        whole = read_folder(job.dataset[0])
        model, clip, vae = _parts(job)
        caches = [
            encoded(replace(whole, items=items), clip, vae) for items in (whole.items[:count], whole.items[count:])
        ]
        return (_by_node if own.get("trainer") == "node" else _by_trainer)(model, *caches, job.training)


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
    loss = ValidationLossSettings(every=0)
    return replace(job, training=replace(training, steps=protocol.steps or training.steps, validation_loss=loss))


def _parts(job) -> tuple:
    """nano's MODEL in the precision that the job asks for, CLIP and VAE."""
    from bench.nano.host import load_flux2
    from flux2_train.host.loading import load
    from flux2_train.settings.model import ModelSettings

    model, clip, vae = load_flux2()
    if job.model and job.model.precision != ModelSettings("nano").precision:
        chosen = replace(ModelSettings("nano"), precision=job.model.precision)
        model = load.load_model(load.locate_parts(chosen)[0], chosen)
    return model, clip, vae


def _by_trainer(model, caches: tuple, held_out: tuple, config) -> Taught:
    from flux2_train.events import Stepped
    from flux2_train.runs.prepare import new_trainer

    trainer = new_trainer(model, *caches, config, held_out=held_out)
    seconds = 0.0
    with closing(trainer.run()) as run:
        for event in run:
            seconds += event.seconds if isinstance(event, Stepped) else 0
    history = trainer.history
    with trainer.weights_for("export"):
        changes = _changes(trainer.adapters.parts(), model)
    taught, leaked = history.selectivity.get(trainer.step, (0.0, 0.0))
    return Taught(
        changes, history.validation.get(trainer.step), taught / leaked if leaked else None, trainer.step, seconds
    )


def _by_node(model, caches: tuple, held_out: tuple, config) -> Taught:
    """ComfyUI's TrainLoraNode at the same rank, rate, steps and seed; its alpha is 1, and it adapts every layer.

    With checkpointing, without which the blocks' in-place residuals break its backward pass.
    """
    from comfy_extras.nodes_train import TrainLoraNode

    from flux2_train.adapters import read
    from flux2_train.host.lora import apply as lora

    embeds, latents = caches
    items = embeds.dataset.items
    values = dict(
        model=model, latents={"samples": torch.cat([latents.latents[item.view] for item in items])},
        positive=[[embeds.embeds[item.caption], {}] for item in items], batch_size=1, steps=config.steps,
        grad_accumulation_steps=1, learning_rate=config.learning_rate, rank=config.rank, optimizer="AdamW",
        loss_function="MSE", seed=config.seed, training_dtype="fp32", lora_dtype="fp32", quantized_backward=False,
        algorithm="LoRA", gradient_checkpointing=True, checkpoint_depth=1, offloading=False,
        existing_lora="[None]", bucket_mode=False, bypass_mode=False,
    )  # fmt: skip
    started = time.perf_counter()
    tensors = TrainLoraNode.execute(**{name: [value] for name, value in values.items()}).args[0]
    seconds = time.perf_counter() - started
    parts, _ = read.read(tensors, lora.sizes(model), "nano")
    return Taught(_changes(parts, model), None, None, config.steps, seconds)


def _changes(parts: dict, model) -> dict[str, torch.Tensor]:
    """What is added to each layer's weight, (out, in) in fp32."""
    from flux2_train.adapters.dora import is_dora
    from flux2_train.host.lora import apply as lora

    if any(map(is_dora, parts.values())):
        raise ValueError("DoRA adds no fixed change to a weight; this bench cannot merge it yet.")
    sizes = lora.sizes(model)
    return {name: part(torch.eye(sizes[name][0])).T.float() for name, part in parts.items()}
