"""Choosing how a run is laid out: the fastest of all layouts that fit and that the user's settings allow."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..errors import UserError
from . import cards
from .estimate import Estimate, estimate, rounds_of
from .layout import BLOCKS, OFF, SELECTIVE, WHOLE, Layout, spread
from .weights import Weights
from .work import Machine, Work

GB = 1e9
ACCURACY, ROOM = 0.05, 0.3e9  # margin: relative error of the peak, and bytes lost between the allocator's pieces
INTERVALS = (1, 2, 3, 4)  # one of that many blocks is recomputed
STREAMING = 0.15  # a plan that streams is taken only if it is faster by this share than one that does not
FULL, FILLING = 0.92, 0.05  # a plan that needs more than FULL of the card must be faster by the share FILLING
LEVEL = 0.1, 0.02  # a lower plan saves these shares of activations and workspace, and of the peak, at least the larger


@dataclass(frozen=True)
class Pins:
    """What the user has fixed; the planner chooses what is None.

    ``streaming``: whether the device can stream.
    """

    checkpointing: str | None = None
    every: int | None = None
    offload_activations: bool | None = None
    streamed: int | None = None
    grouped: str = WHOLE
    per_group: int = 1
    ahead: bool = True
    micro_batch: int | None = None
    streaming: bool = True


FREE = Pins()


@dataclass(frozen=True)
class Plan:
    """A layout and what it takes."""

    layout: Layout
    estimate: Estimate

    def fits(self, machine: Machine) -> bool:
        """Whether it fits with a margin, on the device and in host memory."""
        others = zip(self.estimate.others, machine.others or [machine.vram] * len(self.estimate.others), strict=True)
        on_cards = needed(self.estimate) <= machine.vram and all(needed(one) <= free for one, free in others)
        return on_cards and self.estimate.host_peak <= machine.ram


def needed(estimate: Estimate) -> float:
    """Bytes that should be free: the peak with its margin."""
    return estimate.peak * (1 + ACCURACY) + ROOM


def choose(work: Work, machine: Machine, pins: Pins = FREE) -> Plan:
    """The fastest plan that fits. One that streams or fills the card is taken only if it is clearly faster.

    The seconds are estimates: they assume that transfers run beside the arithmetic, and that other programs leave a
    full card alone. Raises UserError, with the nearest changes that would fit, if no plan fits.
    """
    fitting = list(fitting_plans(work, machine, pins))
    if not fitting:
        raise UserError(_refusal(work, machine, pins))
    resident = [plan for plan in fitting if not plan.estimate.traffic]
    spare = [plan for plan in resident if needed(plan.estimate) <= FULL * machine.vram]
    best = _calmer(_fastest(fitting), resident, STREAMING)
    return best if best.estimate.traffic else _calmer(best, spare, FILLING)


def most_in_flight(work: Work, layout: Layout) -> int:
    """How many passes with gradients can be in flight over the cards: no more than there are cards, or passes."""
    passes = math.ceil(cards.passes(work, rounds_of(work, layout)))
    return max(1, min(len(work.cards), passes)) if work.overlaps else 1


def _calmer(best: Plan, plans: list[Plan], gain: float) -> Plan:
    """The fastest of ``plans`` instead of the best one, unless that is faster by more than ``gain``."""
    other = _fastest(plans or [best])
    return other if other.estimate.seconds * (1 - gain) <= best.estimate.seconds else best


def _fastest(plans: list[Plan]) -> Plan:
    """The fastest plan; of equally fast ones the one with the largest micro-batch, as small ones have hidden costs."""
    return min(plans, key=lambda plan: (plan.estimate.seconds, -plan.layout.micro_batch, plan.estimate.peak))


def fitting_plans(work: Work, machine: Machine, pins: Pins, most: int = 0) -> Iterator[Plan]:
    """For every combination of the other choices, the plan that streams least, if it fits."""
    for layout in combinations(work, pins, most):
        for count in range(1, most_in_flight(work, layout) + 1):
            plan = least_streaming(work, machine, replace(layout, in_flight=count), pins)
            if plan.fits(machine):
                yield plan


def combinations(work: Work, pins: Pins, most: int = 0) -> Iterator[Layout]:
    """Every layout that the pins allow, without streaming; micro-batches of ``most`` samples at most, 0: the batch."""
    shared = Layout(grouped=pins.grouped, per_group=pins.per_group, ahead=pins.ahead)
    for batch in [pins.micro_batch] if pins.micro_batch else _halves(most or work.batch):
        for kind in [pins.checkpointing] if pins.checkpointing else [OFF, SELECTIVE, BLOCKS]:
            for every in [1] if kind == OFF else [pins.every] if pins.every else INTERVALS:
                for moved in _offloads(kind, every, pins):
                    yield replace(shared, checkpointing=kind, every=every, offload_activations=moved, micro_batch=batch)


def _offloads(kind: str, every: int, pins: Pins) -> list[bool]:
    """The choices for ``offload_activations``: only the inputs of recomputed blocks are worth the transfers."""
    if pins.offload_activations is not None:
        return [pins.offload_activations]
    return [False, True] if kind == BLOCKS and every == 1 and pins.streaming else [False]


def _halves(count: int) -> list[int]:
    return [count] if count == 1 else [count, *_halves(-(-count // 2))]


def least_streaming(work: Work, machine: Machine, layout: Layout, pins: Pins) -> Plan:
    """The plan of a layout with the fewest blocks streamed that fits, or all of them if none fits; pins are kept."""
    blocks = work.weights.double + work.weights.single

    def plan(count: int) -> Plan:
        streaming = replace(layout, streamed=spread(count, blocks) if count else ())
        return Plan(streaming, estimate(work, streaming, machine))

    if pins.streamed is not None or not pins.streaming:
        return plan(pins.streamed or 0)
    if plan(0).fits(machine) or not plan(blocks).fits(machine):
        return plan(0) if plan(0).fits(machine) else plan(blocks)
    least, most = 0, blocks  # streaming ``least`` blocks does not fit, streaming ``most`` fits
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (least, middle) if plan(middle).fits(machine) else (middle, most)
    return plan(most)


def smallest(work: Work, machine: Machine, pins: Pins) -> Plan:
    """The plan with the lowest peak that the pins allow."""
    blocks = work.weights.double + work.weights.single
    most = pins.streamed if pins.streamed is not None else blocks if pins.streaming else 0
    layouts = [replace(c, streamed=spread(n, blocks) if n else ()) for c in combinations(work, pins) for n in {0, most}]
    if pins.streamed is not None:
        layouts = [layout for layout in layouts if len(layout.streamed) == pins.streamed]
    plans = (Plan(layout, estimate(work, layout, machine)) for layout in layouts)
    return min(plans, key=lambda plan: plan.estimate.peak)


def fastest_or_smallest(work: Work, machine: Machine, pins: Pins) -> Plan:
    """The fastest plan that fits. If none fits, the smallest one: no run is refused."""
    return _fastest(list(fitting_plans(work, machine, pins)) or [smallest(work, machine, pins)])


def lower(work: Work, machine: Machine, plan: Plan, pins: Pins) -> Plan | None:
    """The fastest plan that takes clearly less memory than this one; None if there is none.

    For a run that ran out of memory although its plan fits. Of the pins only what the device can do, and how weights
    are streamed, is kept.
    """
    free = Pins(streaming=pins.streaming, grouped=pins.grouped, per_group=pins.per_group, ahead=pins.ahead)
    peak, parts = plan.estimate.peak, plan.estimate.parts
    target = peak - max(LEVEL[0] * (parts["activations"] + parts["workspace"]), LEVEL[1] * peak)
    below = replace(machine, vram=target * (1 + ACCURACY) + ROOM)
    fitting = fitting_plans(work, below, free, plan.layout.micro_batch)
    plans = [Plan(p.layout, estimate(work, p.layout, machine)) for p in fitting]  # estimated on the real machine
    return min(plans, key=lambda p: p.estimate.seconds, default=None)


def _refusal(work: Work, machine: Machine, pins: Pins) -> str:
    least = smallest(work, machine, pins)
    need, free = needed(least.estimate) / GB, machine.vram / GB
    reason = f"This run needs {need:.1f} GB of device memory at least, {free:.1f} GB are free"
    if least.estimate.others:
        needs = " + ".join(f"{needed(one) / GB:.1f}" for one in (least.estimate, *least.estimate.others))
        rooms = " + ".join(f"{room / GB:.1f}" for room in (machine.vram, *machine.others))
        reason = f"On {len(work.cards)} cards this run needs {needs} GB of device memory at least, {rooms} GB are free"
    if least.estimate.host_peak > machine.ram:
        reason += (
            f", and {least.estimate.host_peak / GB:.1f} GB of host memory, where {machine.ram / GB:.1f} GB are free"
        )
    near = [f"{words} ({needed(p.estimate) / GB:.1f} GB)" for words, p in nearest(work, machine, pins)]
    return f"{reason}. What would fit: {'; '.join(near)}." if near else f"{reason}; train a smaller flavour."


def nearest(work: Work, machine: Machine, pins: Pins) -> Iterator[tuple[str, Plan]]:
    """Single changes with which the run would fit, in words, each with its plan."""
    free = Pins(streaming=pins.streaming)
    changed = [
        ("offload 'auto' with nothing pinned", work, free),
        ("half the resolution", replace(work, image=work.image // 4), pins),
    ]
    if work.kind == "lora":
        changed.append(("rank 4", replace(work, sites=_of_rank(work, 4)), pins))
    for words, altered, allowed in changed:
        plan = min(fitting_plans(altered, machine, allowed), key=lambda plan: plan.estimate.seconds, default=None)
        if plan is not None:
            yield words, plan


def _of_rank(work: Work, rank: int) -> dict[str, tuple[int, int]]:
    return {n: (min(rank, r), p * min(rank, r) // r) for n, (r, p) in work.sites.items()}


def lora_sites(weights: Weights, names: list[str], rank: int) -> dict[str, tuple[int, int]]:
    """Rank and number of parameters of a plain LoRA of one rank at these Linears."""
    return {name: (rank, rank * sum(weights.linears[name])) for name in names}
