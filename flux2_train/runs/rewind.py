"""Memory that ends where a step cannot simply be repeated: back to the last whole state, one level lower."""

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
    """Takes a run up again in the process that trains it, as ``resume`` would in another.

    An optimizer changes weights in place and asks for memory in between, so an update that ran out of it cannot be
    taken back. But every step draws from the seed and its number alone: from the last checkpoint, or from the weights
    at the beginning, which are kept on the host until there is one, the same steps give the same bits again (on CUDA
    up to rounding).
    Several processes would all have to go back at once: there the run ends, with its checkpoint.
    """

    def __init__(self, trainer: Trainer, folder: RunFolder, checkpoint_writer: CheckpointWriter):
        self.trainer, self.folder, self.checkpoint_writer = trainer, folder, checkpoint_writer
        self.start = None if checkpoint_writer.written else packing.copied(trainer.state_dict())

    def helps(self, error: BaseException) -> bool:
        """Whether a step ended for want of memory, and there is a level with less left. The layout is that one then."""
        trainer = self.trainer
        if not trainer.interrupted or trainer.accelerator.num_processes > 1 or not is_out_of_memory(error):
            return False
        return trainer.memory.take_lower()

    def back(self) -> Iterator[Event]:
        """Put a whole state in place. Call when the error's frames, which hold the step's tensors, are gone."""
        trainer, at = self.trainer, self.trainer.step + 1
        if trainer.half_updated:
            yield from self.checkpoint_writer.settled()
            found = resume.newest(self.folder)
            yield from map(Warned, found.set_aside() if found else ())
            trainer.load_state_dict(found.state if found else self.start)
        free()
        again = f" from step {trainer.step + 1} on" if trainer.step + 1 < at else ""
        yield Warned(
            f"The device ran out of memory while step {at} changed the weights: repeated{again} with "
            f"{trainer.memory.layout_in_words()}. Nothing was left out."
        )
