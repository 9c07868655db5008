"""All that training changes and all that it draws from, as one state that another trainer can go on from."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..adapters.live import Adapters
from ..host.borrowed.borrow import training_mode
from ..settings.training import TrainingSettings
from . import packing
from .ema import Ema
from .history import History
from .schedules import Schedule

GUARDS = ("bad_losses", "divergence", "dead_adapters", "loss_scale")


class Resumable:
    """The part of a trainer that a checkpoint holds."""

    config: TrainingSettings
    step: int
    drawn: int
    torn: bool
    generator: torch.Generator
    adapters: Adapters
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    ema: Ema | None
    history: History

    def state_dict(self) -> dict:
        """All that training changes and draws from, sharing its tensors with the trainer. Not while ``torn``."""
        return {
            "step": self.step,
            "seed": self.config.seed,
            "drawn": self.drawn,
            "generator": self.generator.get_state(),
            "adapter": {name: p.detach() for name, p in self.adapters.masters().items()},
            "optimizer": self.optimizer.state_dict(),
            "scheduled": self.schedule.done,
            "ema": self.ema.state_dict() if self.ema else None,
            "history": self.history.state_dict(),
            "guards": {name: getattr(self, name).state_dict() for name in GUARDS},
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on from a state, with the seed it was made with. The learning rate and its schedule stay the trainer's."""
        self.config = replace(self.config, seed=state["seed"])
        self.step, self.drawn, self.torn = state["step"], state["drawn"], False
        self.optimizer.zero_grad(set_to_none=True)
        self.generator.set_state(state["generator"])
        self.restore_weights(state)
        self.schedule.go_to(state["scheduled"])
        self.history.load_state_dict(state["history"])
        for name in state["guards"].keys() & set(GUARDS):  # checkpoints of older versions lack the newest ones
            getattr(self, name).load_state_dict(state["guards"][name])

    def restore_weights(self, state: dict) -> None:
        """The weights of a state, in all the ways ``weights_for`` may mean them; everything else stays as it is.

        The optimizer's state is among them: a schedule-free one has the weights to use from it.
        """
        with training_mode(), torch.no_grad():
            for name, parameter in self.adapters.masters().items():
                parameter.copy_(state["adapter"][name])
            self.optimizer.load_state_dict(packing.copied(state["optimizer"]))
            if self.ema:
                self.ema.load_state_dict(state["ema"])
