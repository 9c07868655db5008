"""Where ComfyUI's queue of jobs lies."""

from __future__ import annotations

import os
from pathlib import Path

from ...host.loading.places import user_folder
from .folder import Queue

VARIABLE = "FLUX2_TRAIN_QUEUE"


def own_queue() -> Queue:
    """The queue that ``FLUX2_TRAIN_QUEUE`` names, else the one in ComfyUI's user folder, which no route serves."""
    named = os.environ.get(VARIABLE, "").strip()
    return Queue(Path(named) if named else user_folder() / "queue")
