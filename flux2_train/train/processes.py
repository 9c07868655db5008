"""The processes of a run: one inside ComfyUI, any number under ``accelerate launch``, and what each of them does."""

from __future__ import annotations

import atexit
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
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
PATIENCE = timedelta(days=1)  # for the others, while one encodes a data set


def alone() -> Accelerator:
    """An Accelerator of this process only, whatever the environment says, which leaves nothing behind.

    ``cpu`` is for accelerate alone, so that it looks for no device: which one trains is ComfyUI's choice.
    """
    with _own_state(), patch_environment(LOCAL_RANK=-1, WORLD_SIZE=1):
        return _accelerator(cpu=True)


@contextmanager
def _own_state() -> Iterator[None]:
    """What accelerate makes in this block gets a state to itself, and the state of others is as it was after it.

    accelerate keeps the state of all Accelerators in the class attribute ``_shared_state``, where another pack may have
    put its own, which may not be touched. There is no public way around it (seen in 1.15): ``Accelerator`` takes no
    state, and ``_reset_state``, which is as private, empties that of everybody. An Accelerator holds on to the
    dictionary that it found when it was made, so that it may be exchanged back at once.
    """
    before = [vars(state)["_shared_state"] for state in STATES]  # a descriptor, which reading the attribute would hide
    try:
        for state in STATES:
            state._shared_state = {}
        yield
    finally:
        for state, shared in zip(STATES, before, strict=True):
            state._shared_state = shared


@contextmanager
def launched() -> Iterator[Accelerator]:
    """The Accelerator of a process in a terminal: of all that ``accelerate launch`` started, else of this one only.

    Enter before ComfyUI is imported, which takes the device that is current by then.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield alone()
        return
    accelerator = _accelerator(cpu=not torch.cuda.is_available())
    try:
        yield accelerator
        accelerator.wait_for_everyone()  # one that left before the others has been seen to abort in torch's clean-up
    finally:
        accelerator.end_training()


def leave(code: int = 0) -> NoReturn:
    """End a process that ``accelerate launch`` started, without the clean-up of native libraries.

    A process whose work was done and saved has been seen to abort there (``terminate called without an active
    exception``), in one of some hundred runs, and the launcher then calls the whole run failed.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@contextmanager
def main_first(accelerator: Accelerator) -> Iterator[None]:
    """The main process runs what is inside before the others do, so that they find what it has made."""
    if accelerator.num_processes == 1:  # accelerate would look at its own state, which ``alone`` does without
        yield
        return
    with accelerator.main_process_first():
        yield


def _accelerator(cpu: bool) -> Accelerator:
    # The loop divides by what it has, and ComfyUI chooses dtypes and devices: accelerate's environment must not.
    return Accelerator(
        cpu=cpu,
        mixed_precision="no",
        device_placement=False,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )


def shares(accelerator: Accelerator, count: int, batch: int) -> list[tuple[list[int], float]]:
    """This process's part of ``count`` samples: batches of indices, and what each sample in them weighs.

    The weights of all processes add up to 1. Every process gets the same number of batches, because a model that is
    sharded over them runs in all or in none; one that is left with nothing takes the first sample, at weight 0.
    """
    mine = range(accelerator.process_index, count, accelerator.num_processes)
    rounds = math.ceil(math.ceil(count / accelerator.num_processes) / batch)
    parts = [list(mine[i * batch : (i + 1) * batch]) for i in range(rounds)]
    return [(part, 1 / count) if part else ([0], 0.0) for part in parts]


def total(accelerator: Accelerator, value: Tensor) -> Tensor:
    """The sum of every process's ``value``, the same in all of them."""
    return value if accelerator.num_processes == 1 else accelerator.reduce(value, "sum")


def any_of(accelerator: Accelerator, value: bool) -> bool:
    """Whether ``value`` is true in any process."""
    if accelerator.num_processes == 1:
        return value
    return bool(total(accelerator, torch.tensor(float(value), device=accelerator.device)).item())


def decided(accelerator: Accelerator, decide: Callable[[], T]) -> T:
    """What ``decide`` gives in the main process, in all of them: what lies on a disk may change between two looks.

    Raises the main process's UserError in all of them.
    """
    if accelerator.num_processes == 1:
        return decide()
    told: list = [None, ""]
    if accelerator.is_main_process:
        try:
            told[0] = decide()
        except UserError as error:
            told[1] = str(error)
    broadcast_object_list(told)
    if told[1]:
        raise UserError(told[1])
    return told[0]


def add_gradients(accelerator: Accelerator, parameters: list[nn.Parameter]) -> None:
    """Give every process the sum of all gradients, in one message."""
    if accelerator.num_processes == 1:
        return
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    summed = total(accelerator, torch.cat([g.flatten() for g in gradients]))
    for parameter, part in zip(parameters, summed.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter)
