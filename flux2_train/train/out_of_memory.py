"""When the device runs out of memory in a step, the step is repeated in a smaller layout with the same noise.

So it is, without compiled blocks, when what torch's compiler made fails. Whether blocks are compiled is decided here.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import replace
from typing import TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor

from ..adapters.live import Adapters
from ..events import Event, Phase, Planned, Warned
from ..host.borrowed.attention import Kernels
from ..host.borrowed.borrow import Borrowed
from ..host.borrowed.cards import Cards
from ..host.borrowed.compute import NAMES, training_dtype
from ..host.graph_types import ModelPatcher
from ..host.system import compiler
from ..host.system.machine import rates_in_words
from ..host.system.memory import can_spill, free, is_out_of_memory, reset_watermarks
from ..planning.compiling import Trial
from ..planning.layout import SELECTIVE
from ..planning.planner import GB, Plan, lower, needed
from ..planning.table import parts
from ..settings.memory import AUTO, OFF, ON
from ..settings.training import FASTEST, TrainingSettings
from ..streaming.gathering import Gathered
from . import plans, processes
from .preview_request import PreviewRequest
from .speed.products import Gradient, Products

T = TypeVar("T")


class RunMemory:
    """How a run is laid out in memory, and what happens if the device has too little for that layout.

    ``count`` processes train, or one on several ``cards``. ``how`` is the layout as ``borrow`` takes it. ``messages``
    are sentences that the user has not seen yet.
    """

    def __init__(
        self,
        config: TrainingSettings,
        model: ModelPatcher,
        adapters: Adapters,
        tokens: int,
        previews: PreviewRequest | None = None,
        references: int = 0,
        count: int = 1,
        cards: Cards | None = None,
    ):
        self.work, self.pins, self.machine, self.plan = plans.planned(
            config, model, adapters, tokens, previews, references, count, cards
        )
        via = None
        if self.work.shares > 1 and torch.distributed.is_initialized():
            via = Gathered(model.load_device)
            plans_of_all = processes.of_all(self.plan)  # one for all: they have to run the model equally often
            self.plan = min(plans_of_all, key=lambda plan: plan.estimate.peak)
        self.how = Borrowed(self.plan.layout, via, config.memory.pinned_memory * GB, cards, config.compile == ON)
        self.how.attention = Kernels(config.attention == FASTEST)
        self.compiles, self.uncompiled = config.compile != OFF, ""  # asked for, and why nothing is compiled after all
        self.trial = Trial() if config.compile == AUTO else None
        self.against = _against_compiling(config, adapters, cards) if self.trial else ""
        self.how.compilable = self.compiles and not self.against
        self.products = Products(config.speed, model, cards.devices if cards else [model.load_device])
        self.how.eight_bit = self.products.eight_bit
        self._keep_int8()
        self.device, self.computes_in = model.load_device, training_dtype(model)
        self.messages = self.products.warnings
        self.unpinned = self.measured = 0

    def _keep_int8(self) -> None:
        """Keep int8 numbers of the weights beside them, if the plan streams nothing and leaves room for them."""
        own, estimate = self.how.eight_bit, self.plan.estimate
        alone = not self.plan.layout.streamed and not self.work.cards
        if own and own.copies and alone and needed(estimate) + own.copies <= self.machine.vram:
            own.keep(True)
            parts = {**estimate.parts, "int8 copies": own.copies}
            self.plan = replace(self.plan, estimate=replace(estimate, parts=parts))

    @property
    def room(self) -> float:
        """Bytes that ComfyUI must leave free when it loads the weights: for the run and for other programs."""
        return float(self.plan.estimate.peak - self.plan.estimate.parts["weights"]) + self.machine.withheld

    @property
    def spills(self) -> bool:
        """Whether steps may be slow now because device memory has spilled into host memory."""
        return can_spill(self.device)

    @property
    def expected(self) -> float:
        """The seconds per step that the plan expects."""
        return self.plan.estimate.seconds

    def begin(self) -> Iterator[Event]:
        """How the run is laid out, once it is known whether blocks can be compiled."""
        if self.against and not self.uncompiled:
            self._stop_compiling(self.against)
        elif self.trial and self.trial.decided and not self.uncompiled:
            self.how.compiled = True
        if self.how.compiled:
            yield from self._try_compiler()
        if self.messages:
            yield from map(Warned, self.new_messages())
        yield Planned(self.describe())

    def certify(self, gradient: Gradient, accelerator: Accelerator) -> Iterator[Event]:
        """Decide which layers are multiplied in 8 bits, by a ``gradient`` that the next step would have; see there."""
        yield from self.products.certify(gradient, accelerator)
        yield from self.news()
        if not self.products.undecided:
            yield Planned(self.describe())

    def _try_compiler(self) -> Iterator[Event]:
        yield Phase("trying the compiler")
        reason = compiler.problem(self.device)
        if reason:
            self._stop_compiling(f"torch's compiler does not work here ({reason})")

    def weigh(self, kind: Hashable, seconds: float, left: int, total: int) -> Iterator[Event]:
        """Take note of a step of a ``kind`` for compile 'auto', after which ``left`` of ``total`` are left.

        Between two steps blocks begin to be compiled, or are compiled no longer.
        """
        trial = self.trial
        if trial is None:
            return
        if trial.trying and not self.how.ran:
            self._stop_compiling("no block could be compiled", kept=True)
        if not trial.add(kind, seconds, left, total):
            return
        self.how.compiled = trial.trying or bool(trial.decided)
        if trial.trying:
            yield from self._try_compiler()
        if self.how.compiled and trial.trying:  # the compiler works
            yield Phase("compiling blocks: the next step takes longer")
        elif trial.decided is not None:
            yield Phase(f"blocks are {self._made()}")
        yield Planned(self.describe())

    def _stop_compiling(self, reason: str, kept: bool = False) -> None:
        """Compile nothing from now on; if ``kept``, nor in a resumed run."""
        self.how.compiled, self.uncompiled = False, reason
        if self.trial:
            self.trial.closed, self.trial.trying = True, False
            if kept:
                self.trial.decide(False, reason)
        self.messages.append(f"Blocks are not compiled, and the run goes on as with compile 'off': {reason}.")

    def _made(self) -> str:
        """Whether blocks are compiled, and why."""
        if self.uncompiled:
            return f"not compiled: {self.uncompiled}"
        trial = self.trial
        if self.how.compiled or (trial and trial.decided):
            others = f", but not {' and '.join(sorted(self.how.uncompiled))}" if self.how.uncompiled else ""
            again = ", attention is computed again too" if self.plan.layout.checkpointing == SELECTIVE else ""
            figures = f": {trial.why}" if trial and trial.why else ", on trial" if trial else ""
            return f"compiled by {compiler.BACKEND}{others}{again}{figures}"
        return f"not compiled: {trial.why or 'steps are timed first'}"

    def _blocks(self) -> str:
        """The line about compiled blocks, empty if the user wants none."""
        return f"\n{'blocks':12} {self._made()}" if self.compiles else ""

    def describe(self) -> str:
        """The plan as lines of text, the dtype in which the run computes, and whether its blocks are compiled."""
        scaled = ", with loss scaling" if self.computes_in == torch.float16 else ""
        computes = f"{'computes in':12} {NAMES[self.computes_in]}{scaled}"
        plan = parts(self.plan, self.work.weights.double + self.work.weights.single, self.work.cards)
        if self.work.shares > 1:
            plan = f"{plan}\n{'base':12} shared by {self.work.shares} processes, block by block"
        sentence = self.products.sentence
        products = f"\n{'products':12} {sentence}" if sentence else ""
        acts = f"{products}{self._blocks()}{self._attention()}"
        return f"{plan}\n{'rates':12} {rates_in_words(self.device)}\n{computes}{acts}"

    def _attention(self) -> str:
        """The line about attention's kernels, empty if none is chosen."""
        chosen = self.how.attention.words()
        return f"\n{'attention':12} {chosen}" if chosen else ""

    def attempt(self, step: int, compute: Callable[[int], T], undo: Callable[[], None]) -> T:
        """``compute(micro_batch)``, repeated in the next smaller layout each time the device runs out of memory.

        It is also repeated, once in a run, without compiled blocks if there are any and it fails for another reason, or
        if memory runs out while these are on trial.
        Before a repetition ``undo`` clears the gradients, and torch's random generators are set back, so that the same
        numbers are drawn. Not for the optimizer's update. Raises the device's own error when no smaller layout is left.
        """
        states, smaller = _random_states(), None
        while True:
            try:
                if smaller is not None:  # inside the try: changing the layout may run out of memory, too
                    self._step_down(smaller, step)
                return compute(self.plan.layout.micro_batch)
            except BaseException as error:
                alone = self.work.shares == 1  # the others would wait for what this process fetches again
                tries = alone and is_out_of_memory(error) and not self._on_trial
                smaller = lower(self.work, self.machine, self.plan, self.pins) if tries else None
                if smaller is None and not (alone and self._blames_compiler(error, step)):
                    raise
            # Not in the except block: there the exception's frames still hold the step's tensors.
            undo()
            _restore(states)

    @property
    def _on_trial(self) -> bool:
        return self.trial is not None and self.trial.trying

    def _blames_compiler(self, error: BaseException, step: int) -> bool:
        """Whether to try again without compiled blocks. If they were not to blame, the error then comes again."""
        theirs = compiler.may_be_the_compilers(error) or (self._on_trial and is_out_of_memory(error))
        if not self.how.compiled or not theirs:
            return False
        reason = f"step {step} failed with them and was repeated ({compiler.reason_of(error)})"
        self._stop_compiling(reason, kept=True)
        return True

    def _step_down(self, smaller: Plan, step: int) -> None:
        self._adopt(smaller)
        self.messages.append(
            f"The device ran out of memory in step {step}: repeated with {self.layout_in_words()}. "
            "Nothing was left out."
        )

    def take_lower(self) -> bool:
        """Use the next smaller layout from now on. False, and no change, if there is none."""
        smaller = lower(self.work, self.machine, self.plan, self.pins)
        if smaller is not None:
            self._adopt(smaller)
        return smaller is not None

    def _adopt(self, plan: Plan) -> None:
        if self.how.eight_bit:
            self.how.eight_bit.keep(False)
        free()
        self.plan = plan
        self.how.lay_out(plan.layout)
        free()
        reset_watermarks()  # weights that ComfyUI moved off the device when memory ran out may return

    def _slow_transfers(self, unpinned: int) -> str:
        limit = self.how.pinned / GB
        return (
            f"{unpinned / GB:.1f} GB of streamed weights are not in pinned memory and come more slowly: "
            f"{f'pinned_memory is {limit:g} GB' if limit else 'half of the free host memory is pinned at most'}; "
            "set pinned_memory higher, free host memory, or store the weights in fewer bits."
        )

    def layout_in_words(self) -> str:
        """The present layout as text for the user."""
        blocks = self.work.weights.double + self.work.weights.single
        split = self.plan.layout.micro_batch
        images = f", {split} of {self.work.batch} images at a time" if split < self.work.batch else ""
        return f"{self.plan.layout.describe(blocks)}{images}"

    def news(self) -> Iterator[Event]:
        """What has changed since the last call, each with the plan as it is now."""
        for message in self.new_messages():
            yield Warned(message)
            yield Planned(self.describe())
        if len(self.how.attention.why) > self.measured:
            self.measured = len(self.how.attention.why)
            yield Planned(self.describe())

    def new_messages(self) -> Iterator[str]:
        """The messages since the last call; they are removed."""
        if self.how.unpinned() > self.unpinned:
            self.messages.append(self._slow_transfers(self.how.unpinned()))
        self.unpinned = self.how.unpinned()
        self.messages += self.how.notes
        self.how.notes.clear()
        while self.messages:
            yield self.messages.pop(0)


def _against_compiling(config: TrainingSettings, adapters: Adapters, cards: Cards | None) -> str:
    """Why no block of a run can be compiled, as far as it is known before the first step; empty if one can."""
    if cards and cards.several:
        return "compiled blocks run on one card"
    reasons = {delta.uncompiled for delta in adapters.deltas().values()}
    return reasons.pop() if len(reasons) == 1 else ""


def _random_states() -> list[Tensor]:
    """The states of torch's own generators, from which dropout draws."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [])]


def _restore(states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state_all(states[1:])
