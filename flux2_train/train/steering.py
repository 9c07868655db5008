"""A run is steered between two steps: it ends, pauses, paints, or goes on with other values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from accelerate import Accelerator

from ..errors import UserError
from ..events import Event, Steered, Warned
from ..settings.steering import CHANGE, PAUSE, PREVIEW, STOP, Change, Request
from . import processes
from .between_steps import BetweenSteps
from .building import rates
from .routing import Router
from .state import Resumable

ENDLESS = 2**62  # batches: how many there will be may change


class Requests:
    """Where a trainer finds what is asked of it: nothing, unless a run replaces this."""

    def are_there(self) -> bool:
        """Whether something may have been asked. Called after every step."""
        return False

    def take(self) -> tuple[list[Request], list[str]]:
        """What was asked since the last call, and why something of it cannot be done. Called in the main process."""
        return [], []


class Steerable(Resumable):
    """The part of a trainer that can be changed while it trains.

    ``changes`` are those that were made, and those that a repeated job will make. Settings stay as they were given:
    what holds after a step follows from them and the changes up to it, so that a checkpoint, a repetition and a run
    that goes back a few steps all find the same.
    """

    accelerator: Accelerator
    router: Router
    between_steps: BetweenSteps
    total: int
    asked_total: int  # the number of steps that the settings ask for
    changes: tuple[Change, ...]
    requests: Requests
    stopping: bool
    pausing: bool
    painting: bool  # a preview was asked for

    def stop(self) -> None:
        """End the run normally after the step in progress, as if that were its last one."""
        self.stopping = True

    def repeat(self, changes: tuple[Change, ...]) -> None:
        """Make the changes of another run, each after its step; those of the steps that are done hold at once."""
        self.changes = changes
        self.apply_changes()

    def load_state_dict(self, state: dict) -> None:
        """See ``Resumable``; what was changed up to that step holds again."""
        super().load_state_dict(state)
        self.apply_changes()

    def apply_changes(self) -> None:
        """Put in place what the settings and the changes up to the present step say."""
        made = [change for change in self.changes if change.after <= self.step]
        self.total = _last([change.steps for change in made], self.asked_total)
        rate = _last([change.learning_rate for change in made], self.config.learning_rate)
        self.router.total = self.schedule.total = self.total
        self.schedule.rates = rates(self.adapters, replace(self.config, learning_rate=rate))
        self.schedule.go_to(self.schedule.done)
        self.between_steps.choose_prompts([change.prompts for change in made if change.prompts is not None])

    def _steer(self, step: int) -> Iterator[Event]:
        """Do after ``step`` what was asked, in every process alike, and what a repeated job's changes say."""
        due = [change for change in self.changes if change.after == step]
        if due:
            self.apply_changes()
            yield from (Steered(step, _in_words(change)) for change in due)
        if not processes.any_of(self.accelerator, self.stopping or self.requests.are_there()):
            return
        requests, refused = processes.decided(self.accelerator, self.requests.take)
        yield from map(Warned, refused)
        for request in requests:
            yield from self._obey(request, step)
        if processes.any_of(self.accelerator, self.stopping):
            self.total = step

    def _obey(self, request: Request, step: int) -> Iterator[Event]:
        if request.ask == CHANGE:
            yield from self._change(replace(request.change, after=step))
        self.stopping |= request.ask == STOP
        self.pausing |= request.ask == PAUSE
        self.painting |= request.ask == PREVIEW

    def _change(self, change: Change) -> Iterator[Event]:
        if change.steps is not None and change.steps < change.after:
            done = f"{change.after} steps are done already"
            yield Warned(f"{done}: steps was not changed to {change.steps}.", (CHANGE,))
            change = replace(change, steps=None)
        if change.is_empty:
            return
        self.changes = (*self.changes, change)
        self.apply_changes()
        yield Steered(change.after, _in_words(change))


def require_changeable(change: Change, has_previews: bool) -> None:
    """Raise UserError if a run without previews is asked for other prompts."""
    if change.prompts is not None and not has_previews:
        raise UserError("This run paints no previews, so it has no prompts: wire Validation into the next one.")


def _in_words(change: Change) -> str:
    """What a change set, such as 'learning rate 5e-05, 300 steps'."""
    words = [] if change.learning_rate is None else [f"learning rate {change.learning_rate:g}"]
    words += [] if change.steps is None else [f"{change.steps} steps"]
    words += [] if change.prompts is None else [f"{len(change.prompts)} preview prompts"]
    return ", ".join(words)


def _last(values: Sequence, default):
    """The last value that is not ``None``."""
    return next((value for value in reversed(values) if value is not None), default)
