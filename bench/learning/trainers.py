"""Who teaches: LoRA Trainer, ComfyUI's TrainLoraNode, and diffusers with peft. All of them on the same pictures.

Each is called as ``trainer(model, caches, held_out, config, watch)`` and returns what was ``Taught``. ``watch`` is told
``(step, spent, changes)`` after each step: what was spent since the call, without earlier calls of ``watch``, and a
function that gives the LoRA as it is. It raises ``Enough`` to end the run there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

if TYPE_CHECKING:
    from flux2_train.train.history import History

Changes = dict[str, Tensor]  # what is added to each layer's weight, (out, in) in fp32


class Spent(NamedTuple):
    """Seconds by the clock, and seconds that the processor worked for this process."""

    seconds: float
    processor: float


Watch = Callable[[int, Spent, Callable[[], Changes]], None]


class Enough(Exception):
    """The watcher has seen all that it wants."""


@dataclass(frozen=True)
class Taught:
    """A LoRA as changes of weights by layer; ``seconds`` as the trainer says below; LoRA Trainer has a ``history``."""

    changes: Changes
    steps: int
    seconds: float
    history: History | None = None


class Clock:
    """What was spent since it was made, without what the watcher spent."""

    def __init__(self, watch: Watch | None):
        self.watch, self.started, self.watched = watch, _now(), Spent(0.0, 0.0)

    def spent(self) -> Spent:
        return Spent(
            *(now - start - watched for now, start, watched in zip(_now(), self.started, self.watched, strict=True))
        )

    def tell(self, step: int, changes: Callable[[], Changes]) -> None:
        """Tell the watcher, outside of autograd and of inference mode."""
        if self.watch:
            spent, began = self.spent(), _now()
            with torch.inference_mode(False), torch.no_grad():
                self.watch(step, spent, changes)
            self.watched = Spent(
                *(old + now - then for old, now, then in zip(self.watched, _now(), began, strict=True))
            )


def _now() -> Spent:
    return Spent(time.perf_counter(), time.process_time())


def by_trainer(model, caches: tuple, held_out: tuple, config, watch: Watch | None = None) -> Taught:
    """LoRA Trainer; the seconds of ``Taught`` are those of its steps alone."""
    from flux2_train.events import Completed, Stepped
    from flux2_train.runs.prepare import new_trainer

    clock = Clock(watch)
    trainer, seconds = new_trainer(model, *caches, config, held_out=held_out), 0.0

    def changes() -> Changes:
        with trainer.weights_for("export"):
            return _changes(trainer.adapters.parts(), model)

    with suppress(Enough), closing(trainer.run()) as run:
        for event in run:
            seconds += event.seconds if isinstance(event, Stepped) else 0
            if isinstance(event, Completed):
                clock.tell(event.step, changes)
    return Taught(changes(), trainer.step, seconds, trainer.history)


def by_node(model, caches: tuple, held_out: tuple, config, watch: Watch | None = None) -> Taught:
    """ComfyUI's TrainLoraNode at the same rank, rate, steps and seed; its alpha is 1, and it adapts every layer.

    With checkpointing, without which the blocks' in-place residuals break its backward pass. The seconds are all that
    it takes.
    """
    from comfy_extras.nodes_train import TrainLoraNode

    embeds, latents = caches
    items, done = embeds.dataset.items, 0
    values = dict(
        model=model, latents={"samples": torch.cat([latents.latents[item.view] for item in items])},
        positive=[[embeds.embeds[item.caption], {}] for item in items], batch_size=1, steps=config.steps,
        grad_accumulation_steps=1, learning_rate=config.learning_rate, rank=config.rank, optimizer="AdamW",
        loss_function="MSE", seed=config.seed, training_dtype="fp32", lora_dtype="fp32", quantized_backward=False,
        algorithm="LoRA", gradient_checkpointing=True, checkpoint_depth=1, offloading=False,
        existing_lora="[None]", bucket_mode=False, bypass_mode=False,
    )  # fmt: skip
    clock = Clock(watch)
    with _node_tensors() as tensors, ExitStack() as stack:

        def stepped(*_) -> None:
            nonlocal done
            done += 1
            clock.tell(done, lambda: _of_node(tensors, model))

        stack.callback(register_optimizer_step_post_hook(stepped).remove)
        with suppress(Enough):
            TrainLoraNode.execute(**{name: [value] for name, value in values.items()})
        return Taught(_of_node(tensors, model), done, clock.spent().seconds)


@contextmanager
def _node_tensors() -> Iterator[dict[str, Tensor]]:
    """The LoRA's tensors while TrainLoraNode trains them, which it otherwise gives away at its end alone."""
    from comfy_extras import nodes_train

    tensors, setup = {}, nodes_train._setup_lora_adapters

    def noting(*arguments):
        found = setup(*arguments)
        tensors.update(found[0])
        return found

    nodes_train._setup_lora_adapters = noting
    try:
        yield tensors
    finally:
        nodes_train._setup_lora_adapters = setup


def _of_node(tensors: dict[str, Tensor], model) -> Changes:
    from flux2_train.adapters import read
    from flux2_train.host.lora import apply as lora

    parts, _ = read.read({name: each.detach().clone() for name, each in tensors.items()}, lora.sizes(model), "nano")
    return _changes(parts, model)


def by_diffusers(model, caches: tuple, held_out: tuple, config, watch: Watch | None = None) -> Taught:
    """diffusers' transformer with peft's LoRA on the same Linears, AdamW, on the batches that LoRA Trainer draws.

    As diffusers' training scripts do it: fp32 adapters, the squared error of the velocity, clipping to 1. The seconds
    are those of its steps alone. Raises ValueError for pictures with references, which it is not given here.
    """
    from flux2_train.data.order import batches, drawn
    from flux2_train.train.steering import ENDLESS
    from flux2_train.train.trainer import Trainer

    clock, seconds = Clock(watch), 0.0
    trainer = Trainer(model, *caches, config)  # never run: it draws
    if trainer.samples.reference_tokens():
        raise ValueError("diffusers is not given references here.")
    layers, transformer, places = diffusers_model(trainer)
    parameters = [each for each in transformer.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=0.01)
    order = islice(batches(trainer.samples, 1, config.seed, ENDLESS, 0, 1), trainer.total)
    step = 0

    def changes() -> Changes:
        return of_diffusers(layers, transformer)

    with suppress(Enough), closing(drawn(trainer.samples, order, config.seed, 1)) as samples:
        for step, (sample,) in enumerate(samples, 1):
            began, draws = time.perf_counter(), trainer.draw([sample], step)
            with torch.inference_mode(False), torch.enable_grad():
                _diffusers_loss(transformer, sample, draws, places).backward()
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            seconds += time.perf_counter() - began
            clock.tell(step, changes)
    with torch.no_grad():
        return Taught(changes(), step, seconds)


def of_diffusers(layers: dict[str, list[str]], transformer) -> Changes:
    """The LoRA of diffusers' model by our layers, some of which are several of its own."""
    return {ours: torch.cat([transformer.get_submodule(each).get_delta_weight("default") for each in theirs])
            for ours, theirs in layers.items()}  # fmt: skip


def diffusers_model(trainer) -> tuple[dict[str, list[str]], torch.nn.Module, tuple[Tensor, Tensor]]:
    """Our layers with diffusers' names of each, the model with a LoRA of the same rank, positions (image, text)."""
    import peft
    from safetensors.torch import load_file

    from bench.as_diffusers import diffusers_transformer, diffusers_weights
    from bench.speed.problem import TARGETS
    from flux2_train.nano import WEIGHTS

    first, rank, zero = trainer.samples[0], trainer.config.rank, torch.tensor([0])
    height, width, length = *first.latent.shape[-2:], first.embeds.shape[1]
    with torch.inference_mode(False), torch.random.fork_rng():
        torch.manual_seed(trainer.config.seed)
        weights = {name: each.float() for name, each in load_file(WEIGHTS / "transformer.safetensors").items()}
        transformer = diffusers_transformer(weights)
        transformer.add_adapter(peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS["diffusers"]))
        image = torch.cartesian_prod(zero, torch.arange(height), torch.arange(width), zero)
        text = torch.cartesian_prod(zero, zero, zero, torch.arange(length))
    names = {name: diffusers_weights({f"{name}.weight": weights[f"{name}.weight"]}) for name in trainer.adapters.names}
    layers = {ours: [each.removesuffix(".weight") for each in theirs] for ours, theirs in names.items()}
    return layers, transformer, (image, text)


def _diffusers_loss(transformer, sample, draws, places: tuple[Tensor, Tensor]) -> Tensor:
    x0, noise, t = sample.latent.float().clone(), draws.noise.clone(), draws.t.clone()
    x_t = (1 - t) * x0 + t * noise
    tokens = x_t.flatten(2).transpose(1, 2)
    found = transformer(tokens, sample.embeds.float().clone(), t, *places, return_dict=False)[0]
    return (found.transpose(1, 2).reshape(x0.shape) - (noise - x0)).square().mean()


def _changes(parts: dict, model) -> Changes:
    """What the parts add to the weights of a MODEL, which DoRA's depend on."""
    from flux2_train.adapters.dora import change
    from flux2_train.host.borrowed.borrow import linears
    from flux2_train.host.borrowed.frozen import fetched

    found, layers = {}, linears(model)
    for name, part in parts.items():
        with fetched(layers[name], torch.float32, torch.device("cpu")) as (weight, _):
            found[name] = change(part, weight).float()
    return found
