"""Where ComfyUI's queue of jobs lies, and which run a job of it goes on with."""

from __future__ import annotations

import os
from pathlib import Path

from ...host.loading.files import run_folder
from ...host.loading.places import user_folder
from ..folder import RunFolder
from ..library.removal import existing
from ..resume import AUTO
from .folder import Claim, Queue

VARIABLE = "FLUX2_TRAIN_QUEUE"


def own_queue() -> Queue:
    """The queue that ``FLUX2_TRAIN_QUEUE`` names, else the one in ComfyUI's user folder, which no route serves."""
    named = os.environ.get(VARIABLE, "").strip()
    return Queue(Path(named) if named else user_folder() / "queue")


def how_of(claim: Claim) -> str | RunFolder:
    """How a claimed job is trained, as ``session.train`` takes it: AUTO, or the run that goes on.

    Raises UserError if that run is gone.
    """
    values = claim.entry.values()
    return existing(run_folder(), str(values.get("of"))) if values.get("goes_on") is True else AUTO
