"""Choosing how a run is laid out: the fastest of all layouts that fit, within what the user has pinned."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..errors import UserError
from .estimate import Estimate, Machine, Work, estimate
from .layout import BLOCKS, OFF, SELECTIVE, WHOLE, Layout, spread
from .weights import Weights

GB = 1e9
ACCURACY, ROOM = 0.05, 0.3e9  # what the peak may be off by, and what the allocator loses between its pieces
INTERVALS = (1, 2, 3, 4)  # of recomputed blocks
STREAMING = 0.15  # by so much a plan has to be faster that streams where another does not
FULL, FILLING = 0.92, 0.05  # and by so much one that fills so much of the card where another leaves it free
LEVEL = 0.1, 0.02  # a lower level saves so much of activations and workspace, and so much of the peak


@dataclass(frozen=True)
class Pins:
    """What the user has decided; None is left to the planner. ``streaming``: whether this device can stream at all."""

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
        return needed(self.estimate) <= machine.vram and self.estimate.host_peak <= machine.ram


def needed(estimate: Estimate) -> float:
    """Bytes that should be free: the peak with its margin."""
    return estimate.peak * (1 + ACCURACY) + ROOM


def choose(work: Work, machine: Machine, pins: Pins = FREE) -> Plan:
    """The fastest plan that fits, but one that streams or fills the card only for a clear gain.

    Seconds are arithmetic: that transfers run beside it is assumed, and on a full card others' memory decides. Raises
    UserError, with the nearest things that would fit, if there is no plan.
    """
    fitting = list(fitting_plans(work, machine, pins))
    if not fitting:
        raise UserError(_refusal(work, machine, pins))
    resident = [plan for plan in fitting if not plan.estimate.traffic]
    spare = [plan for plan in resident if needed(plan.estimate) <= FULL * machine.vram]
    best = _calmer(_fastest(fitting), resident, STREAMING)
    return best if best.estimate.traffic else _calmer(best, spare, FILLING)


def _calmer(best: Plan, plans: list[Plan], gain: float) -> Plan:
    """The fastest of ``plans`` instead of the best one, unless that is faster by more than ``gain``."""
    other = _fastest(plans or [best])
    return other if other.estimate.seconds * (1 - gain) <= best.estimate.seconds else best


def _fastest(plans: list[Plan]) -> Plan:
    """Of equally fast ones that which splits a batch least: small batches are slower than arithmetic knows."""
    return min(plans, key=lambda plan: (plan.estimate.seconds, -plan.layout.micro_batch, plan.estimate.peak))


def fitting_plans(work: Work, machine: Machine, pins: Pins, most: int = 0) -> Iterator[Plan]:
    """Of every combination of the other choices the plan that streams least and fits."""
    for layout in combinations(work, pins, most):
        plan = least_streaming(work, machine, layout, pins)
        if plan.fits(machine):
            yield plan


def combinations(work: Work, pins: Pins, most: int = 0) -> Iterator[Layout]:
    """Every layout that the pins allow, without streaming, with parts of ``most`` at most (0: of the whole batch)."""
    shared = Layout(grouped=pins.grouped, per_group=pins.per_group, ahead=pins.ahead)
    for batch in [pins.micro_batch] if pins.micro_batch else _halves(most or work.batch):
        for kind in [pins.checkpointing] if pins.checkpointing else [OFF, SELECTIVE, BLOCKS]:
            for every in [1] if kind == OFF else [pins.every] if pins.every else INTERVALS:
                for away in _aways(kind, every, pins):
                    yield replace(shared, checkpointing=kind, every=every, offload_activations=away, micro_batch=batch)


def _aways(kind: str, every: int, pins: Pins) -> list[bool]:
    """Whether activations go to host memory: only the inputs of recomputed blocks are worth the way."""
    if pins.offload_activations is not None:
        return [pins.offload_activations]
    return [False, True] if kind == BLOCKS and every == 1 and pins.streaming else [False]


def _halves(count: int) -> list[int]:
    return [count] if count == 1 else [count, *_halves(-(-count // 2))]


def least_streaming(work: Work, machine: Machine, layout: Layout, pins: Pins) -> Plan:
    """The layout with as few blocks streamed as fit, or as many as there are; what is pinned is pinned."""
    blocks = work.weights.double + work.weights.single

    def plan(count: int) -> Plan:
        found = replace(layout, streamed=spread(count, blocks) if count else ())
        return Plan(found, estimate(work, found, machine))

    if pins.streamed is not None or not pins.streaming:
        return plan(pins.streamed or 0)
    if plan(0).fits(machine) or not plan(blocks).fits(machine):
        return plan(0) if plan(0).fits(machine) else plan(blocks)
    least, most = 0, blocks  # does not fit, fits
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
    return min((Plan(found, estimate(work, found, machine)) for found in layouts), key=lambda plan: plan.estimate.peak)


def lower(work: Work, machine: Machine, plan: Plan, pins: Pins) -> Plan | None:
    """The fastest plan that takes clearly less than this one, whatever was pinned but for streaming; None if none does.

    For a run that has met the end of memory although its plan fitted.
    """
    free = Pins(streaming=pins.streaming, grouped=pins.grouped, per_group=pins.per_group, ahead=pins.ahead)
    peak, parts = plan.estimate.peak, plan.estimate.parts
    target = peak - max(LEVEL[0] * (parts["activations"] + parts["workspace"]), LEVEL[1] * peak)
    below = replace(machine, vram=target * (1 + ACCURACY) + ROOM)
    found = fitting_plans(work, below, free, plan.layout.micro_batch)
    again = [Plan(p.layout, estimate(work, p.layout, machine)) for p in found]
    return min(again, key=lambda p: p.estimate.seconds, default=None)


def _refusal(work: Work, machine: Machine, pins: Pins) -> str:
    least = smallest(work, machine, pins)
    need, free = needed(least.estimate) / GB, machine.vram / GB
    say = f"This run needs {need:.1f} GB of device memory at least, {free:.1f} GB are free"
    if least.estimate.host_peak > machine.ram:
        say += f", and {least.estimate.host_peak / GB:.1f} GB of host memory, where {machine.ram / GB:.1f} GB are free"
    near = [f"{words} ({needed(p.estimate) / GB:.1f} GB)" for words, p in nearest(work, machine, pins)]
    return f"{say}. What would fit: {'; '.join(near)}." if near else f"{say}; train a smaller flavour."


def nearest(work: Work, machine: Machine, pins: Pins) -> Iterator[tuple[str, Plan]]:
    """What would fit with one thing changed, in words, and its plan."""
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
