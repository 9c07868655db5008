"""Out of memory in the middle of a step: one level down, and the same step again with the same noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..host.borrowed.borrow import Borrowed
from ..host.borrowed.compute import NAMES, training_dtype
from ..host.system.machine import rates_in_words
from ..host.system.memory import can_spill, free, is_out_of_memory, reset_watermarks
from ..planning.planner import GB, Plan, lower
from ..planning.table import parts
from ..settings.training import TrainingSettings
from . import plans


class Memory:
    """How a run is laid out in memory, and what happens when that turns out to be too much.

    ``how`` is what ``borrow`` takes. ``told`` are sentences that the user has not been told yet.
    """

    def __init__(self, config: TrainingSettings, model, adapters, tokens: int, validation=None):
        self.work, self.pins, self.machine, self.plan = plans.planned(config, model, adapters, tokens, validation)
        self.how = Borrowed(self.plan.layout, pinned=config.memory.pinned_memory * GB)
        self.device, self.computes_in = model.load_device, training_dtype(model)
        self.told: list[str] = []
        self.unpinned = 0

    @property
    def room(self) -> float:
        """Bytes that ComfyUI has to leave free when it loads the weights: what a run needs, and what others keep."""
        return float(self.plan.estimate.peak - self.plan.estimate.parts["weights"]) + self.machine.withheld

    @property
    def spills(self) -> bool:
        """Whether steps may be slow now because memory has spilled into the host's."""
        return can_spill(self.device)

    @property
    def expected(self) -> float:
        """Seconds that a step takes by the plan."""
        return self.plan.estimate.seconds

    def describe(self) -> str:
        """The plan in lines, and the dtype in which the run computes."""
        scaled = ", with loss scaling" if self.computes_in == torch.float16 else ""
        computes = f"{'computes in':12} {NAMES[self.computes_in]}{scaled}"
        plan = parts(self.plan, self.work.weights.double + self.work.weights.single)
        return f"{plan}\n{'rates':12} {rates_in_words(self.device)}\n{computes}"

    def attempt(self, step: int, compute: Callable[[int], Tensor], undo: Callable[[], None]) -> Tensor:
        """``compute(micro_batch)``, again and again one level down for as long as the device has no memory for it.

        What it has drawn by then is drawn again from the same state; ``undo`` takes its gradients back. Only for what
        comes before the optimizer's update. Raises the device's own error when there is no level left.
        """
        states, below = _random_states(), None
        while True:
            try:
                if below is not None:  # here: laying out the lower level may find no memory either
                    self._step_down(below, step)
                return compute(self.plan.layout.micro_batch)
            except BaseException as error:
                below = lower(self.work, self.machine, self.plan, self.pins) if is_out_of_memory(error) else None
                if below is None:
                    raise
            # Here and not above: while the exception is handled, its frames hold the step's tensors.
            undo()
            _restore(states)

    def _step_down(self, below: Plan, step: int) -> None:
        self._take(below)
        self.told.append(
            f"The device ran out of memory in step {step}: repeated with {self.layout_in_words()}. "
            "Nothing was left out."
        )

    def take_lower(self) -> bool:
        """Run one level down from here on; false, and as before, where there is none left."""
        below = lower(self.work, self.machine, self.plan, self.pins)
        if below is not None:
            self._take(below)
        return below is not None

    def _take(self, below: Plan) -> None:
        free()
        self.plan = below
        self.how.lay_out(below.layout)
        free()
        reset_watermarks()  # what was squeezed out while memory ended

    def _slow(self, unpinned: int) -> str:
        limit = self.how.pinned / GB
        return (
            f"{unpinned / GB:.1f} GB of streamed weights are not in pinned memory and come more slowly: "
            f"{f'pinned_memory is {limit:g} GB' if limit else 'half of the free host memory is pinned at most'}; "
            "set pinned_memory higher, free host memory, or store the weights in fewer bits."
        )

    def layout_in_words(self) -> str:
        """How the run is laid out now."""
        blocks = self.work.weights.double + self.work.weights.single
        split = self.plan.layout.micro_batch
        images = f", {split} of {self.work.batch} images at a time" if split < self.work.batch else ""
        return f"{self.plan.layout.describe(blocks)}{images}"

    def tell(self) -> Iterator[str]:
        """What has happened since the last call."""
        if self.how.unpinned() > self.unpinned:
            self.told.append(self._slow(self.how.unpinned()))
        self.unpinned = self.how.unpinned()
        while self.told:
            yield self.told.pop(0)


def _random_states() -> list[Tensor]:
    """The states of torch's own generators, from which dropout draws."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [])]


def _restore(states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state_all(states[1:])
