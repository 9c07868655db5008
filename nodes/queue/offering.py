"""Puts waiting jobs of the folder into ComfyUI's own queue, one at a time, whenever that is empty."""

from __future__ import annotations

import logging
import threading
import time
import uuid

from server import PromptServer

from ...flux2_train.runs.queue.folder import WAITING, Queue
from ...flux2_train.runs.queue.place import own_queue

PATIENCE = 2.0  # seconds between two looks: what a person queues meanwhile comes first
NODE = "Flux2TrainQueued"


def begin_offering() -> None:
    """Start the thread that looks, if there is a server."""
    server = getattr(PromptServer, "instance", None)
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
        _put(server, waiting[0].name)
    return bool(waiting)


def _put(server: PromptServer, name: str) -> None:
    prompt = {"1": {"class_type": NODE, "inputs": {"job": name}, "_meta": {"title": "Train Queued Job"}}}
    number = server.number
    server.number += 1
    about = {"create_time": int(time.time() * 1000)}  # milliseconds, as ComfyUI's own route writes it
    server.prompt_queue.put((number, str(uuid.uuid4()), prompt, about, ["1"], {}))
