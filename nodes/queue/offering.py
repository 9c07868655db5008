"""Puts waiting jobs of the folder into ComfyUI's own queue, one at a time, whenever that is empty."""

from __future__ import annotations

import logging
import threading
import time

from server import PromptServer

from ...flux2_train.runs.queue.folder import WAITING, Queue
from ...flux2_train.runs.queue.place import own_queue
from ..browser.server import prompt_server
from .putting import put

PATIENCE = 2.0  # seconds between two looks: what a person queues meanwhile comes first
NODE = "Flux2TrainQueued"


def begin_offering() -> None:
    """Start the thread that looks, if there is a server."""
    server = prompt_server()
    if server is not None:
        threading.Thread(target=_offer_for_ever, args=(server,), name="flux2_train queue", daemon=True).start()


def _offer_for_ever(server: PromptServer) -> None:
    while True:
        time.sleep(PATIENCE)
        try:
            offer(server, own_queue())
        except Exception as error:  # a folder that cannot be read now may be there later
            logging.debug("The queue of jobs could not be looked at: %r", error)


def offer(server: PromptServer, queue: Queue) -> bool:
    """Queue the next waiting job if ComfyUI has nothing to do. Returns whether one was queued."""
    queue.release_abandoned()
    if queue.paused or server.prompt_queue.get_tasks_remaining():
        return False
    waiting = queue.entries(WAITING)
    if waiting:
        put(server, NODE, {"job": waiting[0].name}, "Train Queued Job")
    return bool(waiting)
