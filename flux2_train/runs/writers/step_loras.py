"""LoRA files that a run saves on its way, every so many steps."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError

from ...errors import UserError
from ...events import Completed, Event
from ...train.trainer import Trainer
from ..folder import RunFolder
from ..loras import remove
from ..results import metadata
from ..saving import save_adapters

STEP_LORAS = "step_loras"  # in run.json: {step: file below the folder of LoRAs}


class StepLoras:
    """Saves ``NAME_step500`` beside the place of the run's LoRA when it is due, and removes the oldest ones.

    Only files that run.json lists are ever removed. After a step that is repeated, because the run went back to a
    checkpoint, its file takes the place of the earlier one. The last step gets none: it has the run's LoRA.
    """

    def __init__(self, trainer: Trainer, folder: RunFolder, loras: Path):
        self.trainer, self.folder, self.loras = trainer, folder, loras

    def __call__(self, event: Event) -> None:
        """Save a file if one is due after this event. Raises OSError if it cannot be written."""
        every = self.trainer.config.checkpoints.lora_every
        if isinstance(event, Completed) and every and event.step % every == 0 and event.step != self.trainer.total:
            self._save(event.step)

    def _save(self, step: int) -> None:
        listed = _listed(self.folder)
        if step in listed:
            remove(self.folder, self.loras, listed.pop(step))
        listed[step] = self._written(step).relative_to(self.loras).as_posix()
        keep = self.trainer.config.checkpoints.lora_keep
        for old in sorted(listed)[:-keep] if keep else ():
            remove(self.folder, self.loras, listed.pop(old))
        self.folder.note(**{STEP_LORAS: {str(number): listed[number] for number in sorted(listed)}})

    def _written(self, step: int) -> Path:
        """The path of the new file. It is not certified: that would cost a prediction each time."""
        trainer = self.trainer
        try:
            with trainer.weights_for("export"):
                header = metadata(trainer, trainer.dataset)
                return save_adapters(trainer, self.loras, f"{self.folder.name}_step{step}", header, certify=False).path
        except UserError as error:
            if isinstance(error.__cause__, OSError | SafetensorError):
                raise OSError(str(error.__cause__)) from error
            raise


def _listed(folder: RunFolder) -> dict[int, str]:
    """The files that run.json lists, by step. Empty if somebody has written something else there."""
    listed = folder.about().get(STEP_LORAS)
    if not isinstance(listed, dict):
        return {}
    return {int(step): name for step, name in listed.items() if step.isdecimal() and isinstance(name, str)}
