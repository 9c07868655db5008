"""``speed`` of a run: which frozen Linears are multiplied in 8 bits, decided before the first step and kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from statistics import median

import torch
from accelerate import Accelerator
from torch import Tensor

from ...events import Event, Phase
from ...host import sizes
from ...host.borrowed import int8
from ...host.borrowed.eight_bit import EightBit
from ...host.graph_types import ModelPatcher
from ...planning.certifying import (
    FEWEST,
    LEAST,
    WHOLE_COSINE,
    WHOLE_ERROR,
    Agreement,
    Choice,
    gain,
    within_bounds,
    without_worst,
    worst_of,
)
from ...settings.training import CERTIFIED, EXACT
from .. import processes

TIMES = 3  # passes in each way, enough for a median
# Runs a step's passes and changes nothing: gradients in host memory, and the seconds that the passes took
Gradient = Callable[[], tuple[list[Tensor], float]]


class Products:
    """How a run multiplies: ``speed`` of its settings, what is possible here, and what was decided."""

    def __init__(self, speed: str, model: ModelPatcher, devices: Sequence[torch.device]):
        self.speed, self.weights = speed, sizes.precision_of(model)
        self.choice: Choice | None = None
        self.eight_bit, self.problem = None, ""
        if speed == EXACT:
            return
        self.problem = next(filter(None, map(int8.problem, devices)), "")
        eight_bit = EightBit(model)
        if self.problem:
            self.problem = f"the device has no products of int8 matrices ({self.problem})"
        elif not eight_bit.possible:
            self.problem = "the MODEL has no layer that could be multiplied in 8 bits"
        else:
            self.eight_bit = eight_bit
            if speed != CERTIFIED:
                eight_bit.chosen = frozenset(eight_bit.possible)

    @property
    def warnings(self) -> list[str]:
        """What the user should know before the first step."""
        sentence = f"Products are exact, and the run goes on as with speed 'exact': {self.problem}."
        return [sentence] if self.problem else []

    @property
    def undecided(self) -> bool:
        """Whether the next step is to be compared first."""
        return bool(self.eight_bit) and self.speed == CERTIFIED and self.choice is None

    def acting(self) -> AbstractContextManager[None]:
        """A context for a step's passes: the chosen layers are multiplied in 8 bits."""
        return self.eight_bit.acting() if self.eight_bit else nullcontext()

    def certify(self, gradient: Gradient, accelerator: Accelerator) -> Iterator[Event]:
        """Choose the layers by the next step's own passes. Nothing is decided if its exact gradient is not finite.

        All processes decide the same: each layer's worst agreement counts, and the slowest process.
        """
        yield Phase("comparing 8-bit products with exact ones")
        with self.eight_bit.comparing() as found:
            exact, _ = gradient()
        if not all(bool(each.isfinite().all()) for each in exact):
            return
        layers = found if accelerator.num_processes == 1 else worst_of(processes.of_all(found))
        self.choice = self._chosen(layers, exact, gradient, accelerator)
        self.eight_bit.chosen = frozenset(self.choice.layers)
        self.eight_bit.keep(self.eight_bit.keeps and bool(self.choice.layers))
        yield Phase(self.sentence)

    def _chosen(
        self, layers: dict[str, Agreement], exact: Sequence[Tensor], gradient: Gradient, accelerator: Accelerator
    ) -> Choice:
        chosen, whole = within_bounds(layers), None
        if len(chosen) < FEWEST * self.eight_bit.are:
            return self._none(
                f"the error of 8 bits is within the bounds in {len(chosen)} of {self.eight_bit.are} layers"
            )
        while chosen:
            found, _ = self._in_eight_bits(chosen, gradient)
            whole = agreement_of(exact, found)
            if whole.within(WHOLE_ERROR, WHOLE_COSINE):
                break
            chosen = without_worst(chosen, self.eight_bit.are)
        if not chosen:
            return self._none(f"in 8 bits the cosine of the gradient is {whole.cosine:.4f}", whole)
        seconds = [(gradient()[1], self._in_eight_bits(chosen, gradient)[1]) for _ in range(TIMES)]
        if accelerator.num_processes > 1:
            seconds = [tuple(map(max, *each)) for each in zip(*processes.of_all(seconds), strict=True)]
        ours, theirs = ([each[way] for each in seconds] for way in (0, 1))
        faster = gain(ours, theirs)
        if faster < 1 + LEAST:
            return self._none(f"8 bits take {median(theirs):.3g} s and exact products {median(ours):.3g} s", whole)
        return Choice(tuple(chosen), self.weights, whole, faster)

    def _in_eight_bits(self, chosen: Sequence[str], gradient: Gradient) -> tuple[list[Tensor], float]:
        self.eight_bit.chosen = frozenset(chosen)
        with self.eight_bit.acting():
            return gradient()

    def _none(self, why: str, whole: Agreement | None = None) -> Choice:
        return Choice((), self.weights, whole, why=why)

    @property
    def sentence(self) -> str:
        """How the run multiplies, for people; empty with speed 'exact'."""
        if self.speed == EXACT:
            return ""
        if self.problem:
            return f"exact products: {self.problem}"
        if self.undecided:
            return "exact products until 8 bits are compared with them"
        if self.choice and not self.choice.layers:
            return f"exact products: {self.choice.why}"
        layers = self.choice.layers if self.choice else self.eight_bit.possible
        count = f"8-bit products in {len(layers)} of {self.eight_bit.are} layers"
        return count if self.choice is None else f"{count}, {measured(self.choice)}"

    def state_dict(self) -> dict:
        """What ``load_state_dict`` takes."""
        return {"choice": self.choice and self.choice.state_dict(), "sentence": self.sentence}

    def load_state_dict(self, state: dict) -> None:
        """Take over what a run has decided, if it was for weights of this precision."""
        choice = state["choice"] and Choice.of_state(state["choice"])
        self.choice = choice if choice and choice.weights == self.weights and self.speed == CERTIFIED else None
        if self.choice and self.eight_bit:
            self.eight_bit.chosen = frozenset(self.choice.layers)


def measured(choice: Choice) -> str:
    """What was measured for a choice, in words."""
    return f"cosine of the gradient {choice.whole.cosine:.4f}, {choice.faster:.2g} times as fast"


def agreement_of(exact: Sequence[Tensor], other: Sequence[Tensor]) -> Agreement:
    """How far gradients are from exact ones, as one vector."""
    pairs = list(zip(exact, other, strict=True))
    return Agreement.of(_norm([b - a for a, b in pairs]), _norm([a for a, _ in pairs]), _norm([b for _, b in pairs]))


def _norm(tensors: Sequence[Tensor]) -> float:
    return sum(torch.linalg.vector_norm(each, dtype=torch.float64).item() ** 2 for each in tensors) ** 0.5
