"""The processes of a run: one inside ComfyUI, any number under ``accelerate launch``, and what each of them does."""

from __future__ import annotations

import atexit
import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from statistics import fmean, median
from typing import NoReturn, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import (
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    broadcast_object_list,
    patch_environment,
)
from torch import Tensor, nn

from ..errors import UserError

T = TypeVar("T")
STATES = (PartialState, AcceleratorState, GradientState)
PACE_STEPS = 10  # steps over which the pace of a process is judged
SLOW = 1.5  # times what the others take
PATIENCE = timedelta(days=1)  # how long processes wait for the one that encodes a data set


def alone() -> Accelerator:
    """An Accelerator of this process only, whatever the environment says. accelerate's shared state stays as it was.

    ``cpu=True`` only keeps accelerate from choosing a device: ComfyUI chooses the one that trains.
    """
    with _own_state(), patch_environment(LOCAL_RANK=-1, WORLD_SIZE=1):
        return _accelerator(cpu=True)


@dataclass(frozen=True)
class Elsewhere:
    """Stands for ``num_processes`` processes of other programs, for a trainer that only checks what they will do."""

    num_processes: int
    process_index: int = 0
    is_main_process: bool = True


@contextmanager
def _own_state() -> Iterator[None]:
    """An Accelerator that is created inside this block gets its own state; everybody else's state is restored after it.

    accelerate keeps one state for all Accelerators in the class attribute ``_shared_state``. Another node pack may use
    it, so it must not change. There is no public way around it (as of 1.15): ``Accelerator`` takes no state, and
    ``_reset_state``, which is private too, clears it for everybody. An Accelerator keeps the dictionary that it found
    when it was created, so the old dictionary can be put back at once.
    """
    before = [vars(state)["_shared_state"] for state in STATES]  # vars() gives the descriptor itself, getattr its value
    try:
        for state in STATES:
            state._shared_state = {}
        yield
    finally:
        for state, shared in zip(STATES, before, strict=True):
            state._shared_state = shared


@contextmanager
def launched() -> Iterator[Accelerator]:
    """The Accelerator of a process in a terminal: for all processes that ``accelerate launch`` started, or this one.

    Enter before ComfyUI is imported: ComfyUI takes the device that is current at its import.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield alone()
        return
    accelerator = _accelerator(cpu=not torch.cuda.is_available())
    try:
        yield accelerator
        accelerator.wait_for_everyone()  # a process that left early was seen to abort in torch's clean-up
    finally:
        accelerator.end_training()


def leave(code: int = 0) -> NoReturn:
    """End a process that ``accelerate launch`` started, without the clean-up of native libraries.

    A process whose work was done and saved was seen to abort in that clean-up (``terminate called without an active
    exception``), once in a hundred runs or more. The launcher then reports the whole run as failed.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@contextmanager
def main_first(accelerator: Accelerator) -> Iterator[None]:
    """The main process runs the block first, so that the others find the files that it wrote."""
    if accelerator.num_processes == 1:  # accelerate would use its shared state, which ``alone`` avoids
        yield
        return
    with accelerator.main_process_first():
        yield


def _accelerator(cpu: bool) -> Accelerator:
    # Variables of accelerate's environment must not act: the loop accumulates, ComfyUI chooses dtypes and devices.
    return Accelerator(
        cpu=cpu,
        mixed_precision="no",
        device_placement=False,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )


def shares(accelerator: Accelerator, count: int, batch: int) -> list[tuple[list[int], float]]:
    """This process's share of ``count`` samples: batches of indices, each with the weight of every sample in it.

    The weights of all processes add up to 1. Every process gets the same number of batches, because a model that is
    sharded over processes must run in all of them at once. A batch with no sample left is the first sample, weight 0.
    """
    indices = range(accelerator.process_index, count, accelerator.num_processes)
    rounds = math.ceil(math.ceil(count / accelerator.num_processes) / batch)
    parts = [list(indices[i * batch : (i + 1) * batch]) for i in range(rounds)]
    return [(part, 1 / count) if part else ([0], 0.0) for part in parts]


def total(accelerator: Accelerator, value: Tensor) -> Tensor:
    """The sum of ``value`` over all processes, the same in each."""
    return value if accelerator.num_processes == 1 else accelerator.reduce(value, "sum")


class Pace:
    """How long each process computes its share of a step. The seconds travel with the sums that are added up anyway."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator, self.begun, self.took = accelerator, 0.0, 0.0
        self.seconds: deque[list[float]] = deque(maxlen=PACE_STEPS)  # of each process, in the last steps
        self.named: set[int] = set()

    def begin(self) -> None:
        """A step begins here."""
        self.begun = time.perf_counter()

    def end(self, last: Tensor) -> None:
        """A process's share ends here, once the device has computed ``last`` (). A process that is alone waits not."""
        if self.accelerator.num_processes > 1:
            last.item()
        self.took = time.perf_counter() - self.begun

    def total(self, value: Tensor) -> Tensor:
        """The sum of the vector ``value`` over all processes, as ``total``, after the end of a process's share."""
        count = self.accelerator.num_processes
        if count == 1:
            return value
        own = torch.zeros(count, dtype=value.dtype, device=value.device)
        own[self.accelerator.process_index] = self.took
        summed = total(self.accelerator, torch.cat((value, own)))
        self.seconds.append(summed[-count:].tolist())
        return summed[:-count]

    def slowest(self, own: float) -> float:
        """The seconds of the last step in the slowest process, the same in all of them; ``own`` if there is one."""
        return max(self.seconds[-1]) if self.seconds else own

    def slow(self) -> str:
        """A sentence that names a process for which the others wait, once; empty if there is none."""
        if len(self.seconds) < PACE_STEPS:
            return ""
        means = [fmean(each) for each in zip(*self.seconds, strict=True)]
        slowest = max(range(len(means)), key=means.__getitem__)
        others = median(means[:slowest] + means[slowest + 1 :])
        if slowest in self.named or means[slowest] < SLOW * others:
            return ""
        self.named.add(slowest)
        return (
            f"Process {slowest} of {len(means)} (counted from 0) takes {means[slowest]:.2f} s for its share of a step "
            f"and the others {others:.2f} s: they wait for it. Look what else its card or its computer does."
        )


def any_of(accelerator: Accelerator, value: bool) -> bool:
    """Whether ``value`` is true in any process."""
    if accelerator.num_processes == 1:
        return value
    return bool(total(accelerator, torch.tensor(float(value), device=accelerator.device)).item())


def of_all(value: T) -> list[T]:
    """The value of every process, in the order of their numbers; call it in all of them."""
    values: list = [value for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(values, value)
    return values


def decided(accelerator: Accelerator, decide: Callable[[], T]) -> T:
    """Run ``decide`` in the main process and return its result in every process: files may change between two looks.

    If ``decide`` raises UserError, every process raises it.
    """
    if accelerator.num_processes == 1:
        return decide()
    outcome: list = [None, ""]  # the result, the text of an error
    if accelerator.is_main_process:
        try:
            outcome[0] = decide()
        except UserError as error:
            outcome[1] = str(error)
    broadcast_object_list(outcome)
    if outcome[1]:
        raise UserError(outcome[1])
    return outcome[0]


def add_gradients(accelerator: Accelerator, parameters: list[nn.Parameter]) -> None:
    """Give every process the sum of all gradients, in one message."""
    if accelerator.num_processes == 1:
        return
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    summed = total(accelerator, torch.cat([g.flatten() for g in gradients]))
    for parameter, part in zip(parameters, summed.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter)
