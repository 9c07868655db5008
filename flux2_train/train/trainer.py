"""One step, one loop. The trainer never prints: it yields events."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import islice

import torch
from accelerate import Accelerator
from torch import Tensor

from ..data.cache import EmbedCache, LatentCache
from ..data.held_out import kept_out
from ..data.order import batches, drawn, step_count
from ..data.samples import Sample, samples
from ..errors import UserError
from ..events import LOWER_RATE, Completed, Event, Phase, Stepped, Warned
from ..flow.guidance import embedded
from ..host import identify
from ..host.borrowed import pipeline
from ..host.borrowed.borrow import borrow_as, training_mode
from ..host.borrowed.compute import in_training_dtype, training_dtype
from ..host.borrowed.routing import Route
from ..host.borrowed.velocity import Condition, check_embeds, velocity
from ..host.graph_types import ModelPatcher
from ..settings.steering import PAUSE
from ..settings.training import TrainingSettings
from . import micro_batches, processes, timesteps
from .between_steps import BetweenSteps
from .building import build_adapters, build_optimizer, cards_of, first_warnings, require_taught
from .ema import Ema, weights_to_use
from .guards import BadLosses, DeadAdapters, Divergence, Plateau, SlowSteps, clip
from .history import History, Measured, Unread, read
from .loss_scale import LossScale
from .micro_batches import Part
from .objective import Objective, Predict
from .out_of_memory import RunMemory
from .preview_request import PreviewRequest
from .rollout import draw_offsets, rolled_input
from .routing import Router
from .schedules import Schedule
from .slider import slider_embeds, strength_of
from .steering import ENDLESS, Requests, Steerable
from .step_input import Drawn, Memo, ObjectivePart, StepInput, kind_of, step_input


class Trainer(Steerable):
    """Trains LoRA adapters on a FLUX.2 MODEL from cached latents and embeds.

    The constructor raises UserError for wrong inputs, before the first step. ``run`` trains. ``adapters`` and
    ``history`` can be read at any time, also after the run was stopped. ``state_dict`` is all that another Trainer of
    the same inputs needs to continue exactly as this one would have: on a CPU with the same bits.

    ``previews`` says which previews are painted during the run. ``held_out`` are the caches of images that are only
    measured, not trained on; ``config.validation_loss`` can instead hold out images of the data set.

    If ``accelerator`` stands for several processes, they take each step together: every process holds the same
    adapters, draws the same random numbers and computes its share of the samples, then their gradients are summed.
    ``is_main`` is true in the process that yields events and writes files.
    """

    def __init__(
        self,
        model: ModelPatcher,
        embeds: EmbedCache,
        latents: LatentCache,
        config: TrainingSettings,
        accelerator: Accelerator | None = None,
        previews: PreviewRequest | None = None,
        held_out: tuple[EmbedCache, LatentCache] | None = None,
    ):
        identify.require_flux2(model)
        self.accelerator = accelerator or processes.alone()
        self.is_main = self.accelerator.process_index == 0
        self.model, self.config = model, config
        self.samples, self.held_out = kept_out(samples(embeds, latents), config.validation_loss)
        if held_out and config.validation_loss.share:
            raise UserError("Held-out images are wired in and a share of the data set is held out too; set share to 0.")
        self.previews, self.held_out_requests = previews, ()
        if held_out:
            self.held_out, self.held_out_requests = samples(*held_out), held_out[1].dataset.requests
            check_embeds(model, self.held_out[0].embeds)
        self.dataset, self.text_encoder, self.vae = latents.dataset, embeds.made_by, latents.made_by
        self.encoding = embeds.settings, latents.settings
        check_embeds(model, self.samples[0].embeds)
        self.blank = embeds.embeds.get("")
        self.slider = slider_embeds(config.slider, embeds.embeds)
        require_taught(latents.dataset, config)
        self.device = model.load_device
        self.batches_of_step = config.accumulate * self.accelerator.num_processes
        self.step_size = config.batch * self.batches_of_step
        length = config.steps, config.epochs, self.batches_of_step
        self.total = self.asked_total = step_count(self.samples, self.step_size, *length)
        self.router = Router(config.routing, sum(identify.sizes(model)[1:3]), self.total)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.step = 0  # steps done, including those left out for a bad loss
        self.drawn = 0  # samples whose time has been drawn
        self.changes, self.requests = (), Requests()
        self.stopping = self.pausing = self.painting = False
        self.interrupted = False  # the last step did not finish
        self.half_updated = False  # interrupted inside optimizer.step(): the weights are half updated
        self.of_no_step = threading.Lock()
        self.history = History()
        self.bad_losses = BadLosses(config.guard.bad_losses)
        self.divergence = Divergence(config.guard.divergence, config.guard.stop_on_divergence)
        self.pace = processes.Pace(self.accelerator)
        self.slow_steps, self.plateau = SlowSteps(), Plateau(config.checkpoints.patience)
        self.loss_scale = LossScale(training_dtype(model) == torch.float16)
        self.cards = cards_of(model, config, self.accelerator.num_processes)
        with training_mode():
            self.adapters = build_adapters(model, config, self.cards)
            self.dead_adapters = DeadAdapters({name: self.adapters.of_layer(name) for name in self.adapters.names})
            self.optimizer = build_optimizer(self.adapters, config)
            self.schedule = Schedule(self.optimizer, self.total, config.optimizer)
            tokens = self.samples.tokens()
            references, count = self.samples.reference_tokens(), self.accelerator.num_processes
            largest = replace(config, batch=max(source.batch or config.batch for source in self.samples.sources))
            self.memory = RunMemory(largest, model, self.adapters, tokens, previews, references, count, self.cards)
            ema, trained = config.ema, self.adapters.trainable()
            self.ema = Ema(trained, ema.ema_decay, ema.ema_warmup) if ema.ema_decay else None
        self.between_steps = BetweenSteps()

    def run(self) -> Generator[Event, None, None]:
        """Train and yield events. The generator may be closed at any time: the model is given back then, as on errors.

        Autograd and ComfyUI's training flag are on only inside a step, so a listener may use ComfyUI as usual.
        """
        with closing(self._run()) as events:
            for event in events:
                if self.is_main:
                    yield event

    def _run(self) -> Generator[Event, None, None]:
        yield from map(Warned, first_warnings(self.model, self.config, self.total))
        yield Phase("loading")
        config = self.config
        steps = batches(self.samples, self.step_size, config.seed, ENDLESS, 0, self.batches_of_step)
        order = islice(steps, self.step, None)
        yield from self.between_steps.before()
        yield from self.memory.begin()
        with borrow_as(self.model, self.adapters.deltas(), self.memory.how, self.memory.room) as borrowed:
            if self.step == 0:
                yield from self.between_steps.measure(borrowed, 0)
                yield from self.between_steps.paint(borrowed, 0)
            with closing(drawn(self.samples, order, config.seed, self.step + 1)) as drawn_batches:
                while self.step < self.total and not self.pausing:
                    step = self.step + 1
                    yield from self._timed_step(borrowed, step, next(drawn_batches))
                    yield from self._steer(step)
                    yield from self.between_steps.measure(borrowed, step)
                    yield from self._end_on_plateau(step)
                    asked, self.painting = self.painting, False
                    yield from self.between_steps.paint(borrowed, step, asked)
                    yield Completed(step)

    def _end_on_plateau(self, step: int) -> Iterator[Event]:
        """Make ``step`` the last one if the validation loss has not fallen for too long."""
        if step in self.history.validation and self.plateau.reached(self.history.validation) and step < self.total:
            self.total = step
            yield Phase(f"the validation loss has not fallen for {self.plateau.patience} validations: ending")

    def _timed_step(self, borrowed: ModelPatcher, step: int, batch: list[Sample]) -> Iterator[Event]:
        if self.memory.products.undecided:
            yield from self.memory.certify(partial(self._gradient, borrowed, step, batch), self.accelerator)
        started, rate = time.perf_counter(), self.optimizer.param_groups[0]["lr"]
        with self._training(step), self.memory.products.acting():
            measured = self._step(borrowed, step, batch)
        seconds = time.perf_counter() - started
        self.step = step
        if not isinstance(measured, Warned):
            self.history.add(measured.loss, measured.preservation, seconds, rate, measured.bands)
        self._end_update()
        if not isinstance(measured, Warned):
            kind, slowest = kind_of(batch, bool(measured.preservation)), self.pace.slowest(seconds)
            yield from self.memory.weigh(kind, slowest, self.total - step, self.total)
        yield from self.memory.news()
        if isinstance(measured, Warned):
            yield measured
            return
        slow = self.slow_steps.check(seconds, self.memory.expected, self.memory.spills, self.device.type == "cpu")
        warnings = ((self.divergence.check(measured.loss), (LOWER_RATE,)), (slow, (PAUSE,)), (self.pace.slow(), ()))
        yield from (Warned(warning, remedies) for warning, remedies in warnings if warning)
        yield Stepped(step, self.total, measured.loss, self.history.smoothed[-1], measured.preservation, seconds)

    def _step(self, borrowed: ModelPatcher, step: int, batch: list[Sample]) -> Measured | Warned:
        """One optimizer step on the samples of all processes. Returns the reason if the update is left out.

        Every process draws noise and times for all samples, so that they do not depend on how samples are shared.
        """
        self.pace.begin()
        passes = self._passes(borrowed, step, batch)
        self.pace.end(passes[-1].loss)
        parameters = self.adapters.trainable()
        processes.add_gradients(self.accelerator, parameters)
        self.loss_scale.down(parameters)
        norm = clip(parameters, self.config.optimizer.max_grad_norm or math.inf)
        share, norm, sizes = read(passes, norm, self.dead_adapters.sizes())
        measured, norm = Measured.of(self.pace.total(share.to(self.accelerator.device))), norm.item()
        self._begin_update()
        if math.isfinite(measured.loss) and self.loss_scale.overflowed(math.isfinite(norm)):
            self.optimizer.zero_grad(set_to_none=True)
            scale = f"the loss scale is {self.loss_scale.scale:g} now"
            return Warned(f"Step {step} was left out: its gradients were too large for fp16; {scale}.")
        checked = measured.loss + measured.preservation + 0 * norm  # not finite if any of the three is not
        names = [s.item.path.name for s in batch]
        if self.bad_losses.skip(checked, names, len(self.history.losses)):
            self.optimizer.zero_grad(set_to_none=True)
            bad = sorted(set(names))
            return Warned(
                f"Step {step} was left out: its loss is no number ({', '.join(bad)}).", pictures=tuple(bad[:3])
            )
        self._update(measured.loss, sizes)
        return measured

    def _passes(self, borrowed: ModelPatcher, step: int, batch: list[Sample]) -> list[Unread]:
        """All forward and backward passes of a step over this process's samples."""
        objective = self.objective(borrowed)
        drawn = self.draw(batch, step)

        def compute(micro_batch: int) -> list[Unread]:
            most, cards = self.memory.plan.layout.in_flight, self.cards.devices
            device = cards[-1] if most > 1 else self.device  # of the loss
            batches = self._micro_batches(batch, drawn, micro_batch, device, objective.predict)
            parts = objective.parts(step)
            if most == 1:
                return [self._backward(parts, inputs, weight) for inputs, weight in batches]
            with in_training_dtype(borrowed):  # which each pass sets and sets back, beside the others
                return micro_batches.over_cards(batches, parts, self._run_part, cards, most)

        return self.memory.attempt(step, compute, partial(self.optimizer.zero_grad, set_to_none=True))

    def _gradient(self, borrowed: ModelPatcher, step: int, batch: list[Sample]) -> tuple[list[Tensor], float]:
        """A step's gradient in host memory, and the seconds of its passes. The step then draws and finds the same."""
        started, parameters = time.perf_counter(), self.adapters.trainable()
        with self._training(step):
            self._passes(borrowed, step, batch)
            processes.add_gradients(self.accelerator, parameters)
            clip(parameters, math.inf).item()  # waits for the device
            seconds = time.perf_counter() - started
            found = [torch.zeros(p.shape) if p.grad is None else p.grad.cpu() for p in parameters]
            self._undo(*self.begun)
        self._end_update()
        return found, seconds

    def _micro_batches(
        self, batch: list[Sample], drawn: Drawn, size: int, device: torch.device, predict: Predict
    ) -> Iterator[tuple[StepInput, float]]:
        """This process's inputs on the device of the loss, ``size`` samples at a time, and what each sample weighs."""
        for rows, weight in processes.shares(self.accelerator, len(batch), size):
            inputs = step_input(batch, drawn, rows, device, self.device)
            yield rolled_input(self.config.rollout, inputs, [drawn.offsets[i] for i in rows], predict), weight

    @contextmanager
    def _training(self, step: int) -> Iterator[None]:
        """A step's passes and its update run inside. If it is interrupted before that, nothing of it is left."""
        self.begun, self.interrupted = (self.generator.get_state(), self.drawn), True
        try:
            with training_mode(), self.adapters.unchanging(), self.adapters.dropping(self.config.seed, step):
                yield
            self.interrupted = False
        except BaseException:
            if not self.half_updated:
                self._undo(*self.begun)
            self._end_update()
            raise

    def _update(self, loss: float, sizes: Tensor) -> None:
        clamped = self.config.loss.loss_min or self.config.loss.loss_max  # a clamped loss has no gradient on purpose
        if not clamped and self.optimizer.param_groups[0]["lr"]:
            self.dead_adapters.check(loss, sizes)
        self.half_updated = True
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        if self.ema:
            with weights_to_use(self.optimizer, self.adapters.trainable()):
                self.ema.update()
        self.half_updated = False

    def release(self) -> None:
        """Free what only training needs: gradients and the optimizer's state. The adapters stay."""
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer.state.clear()

    def objective(self, borrowed: ModelPatcher) -> Objective:
        """What this run learns, on the model that ``borrow`` gave."""

        def predict(inputs: StepInput) -> Tensor:
            x_t, t = inputs.entering(self.device)
            predicted = self.predict(borrowed, x_t, t, inputs.samples, inputs.guidance, inputs.routes)
            return predicted.to(inputs.x_t.device)

        return Objective(self.config, predict, partial(self.adapters.at_strength, 0.0), self.blank, self.slider)

    def draw(self, batch: list[Sample], step: int) -> Drawn:
        """Everything random about the samples of optimizer step ``step``."""
        noise = torch.randn((len(batch), *batch[0].latent.shape[1:]), generator=self.generator)
        tokens = noise[0, 0].numel()
        offsets = [self.dataset.sources[s.item.source].timestep_offset for s in batch]
        t = timesteps.draw(self.config.timesteps, offsets, tokens, self.drawn, self.config.seed, self.generator)
        self.drawn += len(batch)
        lowest, highest = self.config.guidance.guidance, self.config.guidance.guidance_max
        if not highest or not identify.has_guidance(self.model):  # without a guidance input nothing is drawn
            highest = lowest
        values = embedded(len(batch), lowest, highest, self.generator)
        routes = self.router.draw(batch, step, self.generator)
        return Drawn(noise, t, values, routes, draw_offsets(self.config.rollout, len(batch), step, self.generator))

    def _backward(self, parts: Sequence[Part], inputs: StepInput, weight: float) -> Unread:
        """Run the parts one after the other, forward and backward; each sample weighs ``weight``. Waits for none."""
        memo: Memo = {}
        return micro_batches.unread(inputs, weight, [self._run_part(part, inputs, memo, weight) for part in parts])

    def _run_part(self, part: Part, inputs: StepInput, memo: Memo, weight: float) -> ObjectivePart:
        with self.adapters.at_strength(strength_of(part)):
            done = part(inputs, memo)
            pipeline.backward(partial(self.accelerator.backward, self.loss_scale.up(weight * done.loss.sum())))
        return micro_batches.reported(done)

    def total_of(self, measured: Tensor) -> Tensor:
        """The sum over all processes."""
        return processes.total(self.accelerator, measured.to(self.accelerator.device))

    @contextmanager
    def weights_for(self, use: str) -> Iterator[None]:
        """The adapters' weights for ``use`` (``preview`` or ``export``): their running mean if the user chose it."""
        averaged = self.ema and getattr(self.config.ema, f"ema_{use}")
        mean = self.ema.in_place() if averaged else nullcontext()
        with weights_to_use(self.optimizer, self.adapters.trainable()), mean:
            yield

    def predict(
        self, borrowed: ModelPatcher, x_t: Tensor, t: Tensor, batch: list[Sample], guidance: list[float] = (),
        routes: Sequence[Route] = (),
    ) -> Tensor:  # fmt: skip
        """The borrowed model's velocity (B, 128, h, w) for ``x_t`` at times ``t`` (B,)."""
        method = self.config.guidance.references
        conditions = [
            Condition(s.embeds, s.references, g, method)
            for s, g in zip(batch, guidance or [self.config.guidance.guidance] * len(batch), strict=True)
        ]
        return velocity(borrowed, x_t, t, conditions, routes)
