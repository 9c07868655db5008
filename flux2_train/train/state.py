"""Everything that training changes, and its random state, as one state from which another trainer can continue."""

from __future__ import annotations

import threading
from dataclasses import replace

import torch

from ..adapters.live import Adapters
from ..host.borrowed.borrow import training_mode
from ..settings.training import TrainingSettings
from . import packing
from .ema import Ema
from .history import History
from .out_of_memory import RunMemory
from .schedules import Schedule

GUARDS = ("bad_losses", "divergence", "dead_adapters", "loss_scale")


class Resumable:
    """The part of a trainer that a checkpoint holds."""

    config: TrainingSettings
    step: int
    drawn: int
    half_updated: bool
    generator: torch.Generator
    of_no_step: threading.Lock  # held while the state changes from that of one step to that of the next
    updating: bool = False  # whether the step in progress holds it
    begun: tuple[torch.Tensor, int] | None = None  # generator and ``drawn`` before the step in progress
    adapters: Adapters
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    ema: Ema | None
    history: History
    memory: RunMemory

    def _begin_update(self) -> None:
        """From here to ``_end_update`` the state is of no step."""
        self.of_no_step.acquire()
        self.updating = True

    def _end_update(self) -> None:
        self.begun = None
        if self.updating:
            self.updating = False
            self.of_no_step.release()

    def _undo(self, generator: torch.Tensor, drawn: int) -> None:
        """Restore what a step has drawn, and drop its gradients."""
        self.generator.set_state(generator)
        self.drawn = drawn
        self.optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict:
        """Everything that training changes, and its random state. Do not call while ``half_updated``.

        While a step is in progress and has not begun its update, this is the state before that step. The tensors are
        the trainer's own, not copies.
        """
        generator, drawn = self.begun or (self.generator.get_state(), self.drawn)
        return {
            "step": self.step,
            "seed": self.config.seed,
            "drawn": drawn,
            "generator": generator,
            "adapter": {name: p.detach() for name, p in self.adapters.masters().items()},
            "optimizer": self.optimizer.state_dict(),
            "scheduled": self.schedule.done,
            "ema": self.ema.state_dict() if self.ema else None,
            "history": self.history.state_dict(),
            **({"compiling": trial.state_dict()} if (trial := self.memory.trial) else {}),
            **({"attention": kernels.state_dict()} if (kernels := self.memory.how.attention).fastest else {}),
            **({"products": products.state_dict()} if (products := self.memory.products).sentence else {}),
            "guards": {name: getattr(self, name).state_dict() for name in GUARDS},
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue from a state and with its seed. The learning rate and its schedule stay this trainer's."""
        self.config = replace(self.config, seed=state["seed"])
        self.step, self.drawn, self.half_updated = state["step"], state["drawn"], False
        self.optimizer.zero_grad(set_to_none=True)
        self.generator.set_state(state["generator"])
        self.restore_weights(state)
        self.schedule.go_to(state["scheduled"])
        self.history.load_state_dict(state["history"])
        if self.memory.trial and "compiling" in state:
            self.memory.trial.load_state_dict(state["compiling"])
        self.memory.how.attention.load_state_dict(state.get("attention", {}))
        if "products" in state:
            self.memory.products.load_state_dict(state["products"])
        for name in state["guards"].keys() & set(GUARDS):  # checkpoints of older versions lack the newer guards
            getattr(self, name).load_state_dict(state["guards"][name])

    def restore_weights(self, state: dict) -> None:
        """Restore only the weights of a state, including the running mean that ``weights_for`` may use.

        The optimizer's state belongs to them: a schedule-free optimizer computes the weights to use from it.
        """
        with training_mode(), torch.no_grad():
            for name, parameter in self.adapters.masters().items():
                parameter.copy_(state["adapter"][name])
            self.optimizer.load_state_dict(packing.copied(state["optimizer"]))
            if self.ema:
                self.ema.load_state_dict(state["ema"])
