"""All that training changes and all that it draws from, as one state that another trainer can go on from."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ..host.borrow import training_mode
from . import packing

if TYPE_CHECKING:
    from .trainer import Trainer

GUARDS = ("bad_losses", "divergence", "dead_adapters", "loss_scale")


def state_of(trainer: Trainer) -> dict:
    """The state, sharing its tensors with the trainer."""
    return {
        "step": trainer.step,
        "seed": trainer.config.seed,
        "drawn": trainer.drawn,
        "generator": trainer.generator.get_state(),
        "adapter": {name: p.detach() for name, p in trainer.adapters.masters().items()},
        "optimizer": trainer.optimizer.state_dict(),
        "scheduled": trainer.schedule.done,
        "ema": trainer.ema.state_dict() if trainer.ema else None,
        "history": trainer.history.state_dict(),
        "guards": {name: getattr(trainer, name).state_dict() for name in GUARDS},
    }


def restore(trainer: Trainer, state: dict) -> None:
    """Put a state into a trainer. The seed is the state's, the learning rate and its schedule the trainer's."""
    trainer.config = replace(trainer.config, seed=state["seed"])
    trainer.step, trainer.drawn, trainer.torn = state["step"], state["drawn"], False
    trainer.optimizer.zero_grad(set_to_none=True)
    trainer.generator.set_state(state["generator"])
    restore_weights(trainer, state)
    trainer.schedule.go_to(state["scheduled"])
    trainer.history.load_state_dict(state["history"])
    for name in state["guards"].keys() & set(GUARDS):  # checkpoints of older versions lack the newest ones
        getattr(trainer, name).load_state_dict(state["guards"][name])


def restore_weights(trainer: Trainer, state: dict) -> None:
    """The weights of a state, in all the ways ``weights_for`` may mean them; everything else stays as it is.

    The optimizer's state is among them: a schedule-free one has the weights to use from it.
    """
    with training_mode(), torch.no_grad():
        for name, parameter in trainer.adapters.masters().items():
            parameter.copy_(state["adapter"][name])
        trainer.optimizer.load_state_dict(packing.copied(state["optimizer"]))
        if trainer.ema:
            trainer.ema.load_state_dict(state["ema"])
