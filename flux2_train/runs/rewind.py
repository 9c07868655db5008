"""Memory runs out inside optimizer.step(): the run goes back to the last complete state and then uses less."""

from __future__ import annotations

from collections.abc import Iterator

from ..events import Event, Warned
from ..host.system.memory import free, is_out_of_memory
from ..train import packing
from ..train.trainer import Trainer
from . import resume
from .checkpoint_writer import CheckpointWriter
from .folder import RunFolder


class Rewind:
    """Resumes a run in the process that trains it, as ``resume`` does in a new one.

    An optimizer changes weights in place and allocates memory in between. If an allocation fails, the weights are half
    updated and the update cannot be undone. So the run goes back to its last checkpoint, or to the state at its start,
    which stays on the host until there is a checkpoint. Every step depends on the seed and its own number alone: the
    repeated steps give the same bits (on CUDA up to rounding).
    Of several processes all would have to go back together. This is not done: the run ends, with its checkpoint.
    """

    def __init__(self, trainer: Trainer, folder: RunFolder, checkpoint_writer: CheckpointWriter):
        self.trainer, self.folder, self.checkpoint_writer = trainer, folder, checkpoint_writer
        self.start = None if checkpoint_writer.written else packing.copied(trainer.state_dict())

    def helps(self, error: BaseException) -> bool:
        """Whether memory ran out inside a step and a smaller layout is left. If so, that layout is now in use."""
        trainer = self.trainer
        if not trainer.interrupted or trainer.accelerator.num_processes > 1 or not is_out_of_memory(error):
            return False
        return trainer.memory.take_lower()

    def back(self) -> Iterator[Event]:
        """Restore a complete state. Call it after the error's frames are gone, because they hold the step's tensors."""
        trainer, failed = self.trainer, self.trainer.step + 1
        if trainer.half_updated:
            yield from self.checkpoint_writer.settled()
            last = resume.newest(self.folder)
            yield from map(Warned, last.set_aside() if last else ())
            trainer.load_state_dict(last.state if last else self.start)
        free()
        range_text = f" from step {trainer.step + 1} on" if trainer.step + 1 < failed else ""
        yield Warned(
            f"The device ran out of memory while step {failed} changed the weights: repeated{range_text} with "
            f"{trainer.memory.layout_in_words()}. Nothing was left out."
        )
