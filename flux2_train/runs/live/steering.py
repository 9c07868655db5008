"""What the requests in a run's folder want of it, and which changes a run that goes on has."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from torch import Tensor

from ...bounded import from_json, read_text
from ...data.store import Store
from ...errors import UserError
from ...flavours import flavour
from ...host import describe
from ...host.encoding import encode
from ...host.loading import files, load
from ...settings.base import plain, read
from ...settings.model import ModelSettings
from ...settings.steering import CHANGE, PAUSE, PREVIEW, SAVE, STOP, Change, Request
from ...train.steering import Requests, require_changeable
from ...train.trainer import Trainer
from ..checkpoint_writer import CheckpointWriter
from ..folder import RunFolder
from ..graph_job import job_of
from .asking import MOST_BYTES, waiting

NO_CHECKPOINTS = "Checkpoints are off (keep is 0): the run can be neither paused nor saved. Stop and keep ends it."
ALONE = (
    "A new prompt cannot be encoded while processes share the base (share_base): write it into Validation, so that it "
    "is encoded before the first step."
)
NO_PREVIEWS = "This run paints no previews: wire Validation into the next one."


class FolderRequests(Requests):
    """What the files in a run's folder ask for. Each is answered once: done, or refused with a reason."""

    def __init__(self, trainer: Trainer, folder: RunFolder, writer: CheckpointWriter):
        self.trainer, self.folder, self.writer = trainer, folder, writer
        self.previews = getattr(trainer.between_steps, "previews", None)
        if self.previews and not self.previews.together:
            self.previews.encode = lambda text: encoded(trainer, text)

    def are_there(self) -> bool:
        """See ``Requests``."""
        return self.folder.stop.exists() or self.folder.asked.is_dir()

    def take(self) -> tuple[list[Request], list[str]]:
        """See ``Requests``."""
        taken = [Request(STOP)] if self.folder.stop.exists() else []
        refused = []
        for path in waiting(self.folder):
            try:
                request = read(Request, from_json(read_text(path, MOST_BYTES)))
                self._prepare(request)
                taken.append(request)
            except (UserError, ValueError) as error:
                refused.append(str(error))
            path.unlink(missing_ok=True)
        with suppress(OSError):  # another request may have come
            self.folder.asked.rmdir()
        return taken, refused

    def _prepare(self, request: Request) -> None:
        """Do what only this process does. Raises UserError if the request cannot be met."""
        if request.ask in (PAUSE, SAVE) and self.trainer.config.checkpoints.keep == 0:
            raise UserError(NO_CHECKPOINTS)
        if request.ask == PREVIEW and not (self.previews and self.previews.on):
            raise UserError(NO_PREVIEWS)
        if request.ask == SAVE:
            self.writer.waiting = True
        if request.ask == CHANGE:
            require_changeable(request.change, self.previews is not None)
            if any(text not in self.previews.embeds for text in request.change.prompts or ()):
                if self.previews.together:
                    raise UserError(ALONE)
                encoder_file(self.trainer)


def encoder_file(trainer: Trainer) -> tuple[Path, ModelSettings]:
    """The text encoder file that made a run's embeds, and the settings to load it with.

    Raises UserError if it is not known which file that was, or if it is gone.
    """
    if not trainer.text_encoder:
        raise UserError(
            "A new prompt cannot be encoded, because the embeds do not say which text encoder file made them: write it "
            "into Validation, or load the text encoder with Load FLUX.2."
        )
    chosen, _ = describe.describe(trainer.model, trainer.text_encoder, trainer.vae)
    return files.locate(flavour(chosen.flavour).text_encoders, trainer.text_encoder), chosen


def encoded(trainer: Trainer, text: str) -> Tensor:
    """The embeds (1, L, D) of a new text, kept in the store of the run's embeds. Raises UserError as ``encoder_file``.

    Call between two steps: the text encoder takes the device's memory, which previews give back to training.
    """
    settings = trainer.encoding[0]
    store = Store(files.cache_folder(settings.store))
    clip = load.load_clip(*encoder_file(trainer))
    with encode.TextEncoder(clip, settings.offload) as encoder:
        key = encoder.key(text)
        if store.missing([key]):
            (embeds,) = encoder([text])
            store.write(key, embeds)
            store.flush()
        return store.read(key)


def changes_of(trainer: Trainer, folder: RunFolder, job: dict) -> tuple[Change, ...]:
    """The changes of a run that a trainer goes on with. ``job`` is that of its checkpoint.

    Those in job.json count, because a change is written there at once. A value that the graph has been given since then
    is newer than any change, which is therefore left out.
    """
    with suppress(ValueError):
        job = {**job, "changes": from_json(read_text(folder.job, MOST_BYTES)).get("changes", [])}
    was, now = (_base(each) for each in (job, plain(job_of(trainer))))
    kept = [{name: value for name, value in change.items() if name == "after" or was[name] == now[name]}
            for change in job.get("changes") or ()]  # fmt: skip
    return tuple(change for change in (read(Change, each, "changes") for each in kept) if not change.is_empty)


def _base(job: dict) -> dict:
    """What a job was given for each thing that can be changed."""
    training, previews = job.get("training") or {}, job.get("previews") or {}
    return {
        "learning_rate": training.get("learning_rate"),
        "steps": (training.get("steps"), training.get("epochs") if not training.get("steps") else None),
        "prompts": [prompt.get("text") for prompt in previews.get("prompts") or ()],
    }
