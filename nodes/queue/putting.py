"""Puts a graph of one node into ComfyUI's own queue, as its route for graphs does."""

from __future__ import annotations

import time
import uuid
from typing import Any

from server import PromptServer


def put(server: PromptServer, node: str, inputs: dict[str, Any], title: str = "") -> str:
    """Queue a graph of that one node, and return the graph's id.

    The time must be there: without it, ComfyUI's frontend can read none of the jobs that the server lists.
    """
    number, prompt_id = server.number, str(uuid.uuid4())
    server.number += 1
    prompt = {"1": {"class_type": node, "inputs": inputs, "_meta": {"title": title or node}}}
    about = {"create_time": int(time.time() * 1000)}  # milliseconds
    server.prompt_queue.put((number, prompt_id, prompt, about, ["1"], {}))
    return prompt_id
