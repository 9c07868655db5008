"""The LoRA of a run's best step, saved beside the last one as ``NAME_best``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ...adapters.header import Tensors
from ...errors import UserError
from ...evaluate.best import score
from ...events import BestSoFar, Event, Warned
from ...settings.saving import NO_BEST, RESULT
from ...train import packing
from ...train.trainer import Trainer
from .. import checkpoints
from ..checkpoint_writer import Rank, by_loss
from ..checkpoints import DamagedCheckpoint
from ..folder import RunFolder
from ..loras import remove
from ..results import Results, header
from ..saving import save_adapters

BEST = "best"  # in run.json: the step and the file of the best LoRA, below the folder of LoRAs


def rank_of(trainer: Trainer) -> Rank:
    """How a run compares its checkpoints: by the score of ``evaluate.best``, or as ever by the loss alone."""
    if trainer.config.checkpoints.best == NO_BEST:
        return by_loss
    return lambda step, validation: -score(trainer.history, step)


def restore_best(trainer: Trainer, best: Path | None) -> list[Event]:
    """Put the weights of the best checkpoint in place, if there is one. Returns what there is to tell."""
    try:
        if best is not None:
            _restore(trainer, best)
    except DamagedCheckpoint as error:
        return [Warned(f"The best checkpoint {best.name} cannot be read ({error}); the LoRA is the last one.")]
    return []


def with_best(
    trainer: Trainer, loras: Path, folder: RunFolder, best: Path | None, last: Results
) -> tuple[Results, list[Event]]:
    """What the graph gets, and what there is to tell: the LoRA of the checkpoint ``best`` is saved as settings say.

    ``last`` are the results of the last step; they stay the result where the best LoRA cannot be read, written or
    proved. Afterwards the trainer has its last weights again.
    """
    if trainer.config.checkpoints.best == NO_BEST:
        return last, []
    if best is None:
        return last, [Warned("No step is the best: the validation loss was not measured. Wire Validation Loss in.")]
    try:
        _forget(folder, loras)
        found = last if checkpoints.step_of(best) == trainer.step else _saved(trainer, loras, folder, best, last)
    except (DamagedCheckpoint, UserError, OSError) as error:
        return last, [Warned(f"The best LoRA, of {best.stem}, is not saved, and the result is the last one: {error}")]
    step, file = checkpoints.step_of(best), found.lora_path.relative_to(loras).as_posix()
    folder.note(**{BEST: {"step": step, "lora": file}})
    return found if trainer.config.checkpoints.best == RESULT else last, [BestSoFar(step, file)]


def _restore(trainer: Trainer, path: Path) -> int:
    """Put the weights of a checkpoint in place. Returns how many steps they have learned from."""
    state = checkpoints.read(path).load()
    trainer.restore_weights(state)
    return len(state["history"]["losses"])


def _saved(trainer: Trainer, loras: Path, folder: RunFolder, best: Path, last: Results) -> Results:
    now = packing.copied(trainer.state_dict())
    try:
        steps = _restore(trainer, best)
        with trainer.weights_for("export"):
            head = header(trainer.config, trainer.model, steps, trainer.dataset)
            saved = save_adapters(trainer, loras, f"{folder.name}_{BEST}", head)
    finally:
        trainer.restore_weights(now)
    if saved.problem:
        raise UserError(saved.problem)
    return replace(last, lora=Tensors(saved.tensors, head), lora_path=saved.path, certificate=saved.certificate)


def _forget(folder: RunFolder, loras: Path) -> None:
    """Remove the best LoRA that this run has saved before it was made longer."""
    noted = noted_best(folder)
    if noted:
        remove(folder, loras, noted["lora"])
        folder.note(**{BEST: {}})


def result_file(folder: RunFolder, loras: Path, best: str) -> Path:
    """The LoRA that a finished run has given to the graph: that of its best step if ``best`` says so, else the last."""
    last = str(folder.about().get("lora", ""))
    return loras / (noted_best(folder).get("lora", last) if best == RESULT else last)


def noted_best(folder: RunFolder) -> dict:
    """The best step and its file as run.json has them; empty if there are none, or if they are not as we wrote them."""
    noted = folder.about().get(BEST)
    right = isinstance(noted, dict) and isinstance(noted.get("step"), int) and isinstance(noted.get("lora"), str)
    return noted if right else {}
