"""Keeps the graph that began a run in its folder, so that it can be opened and queued again."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from ...flux2_train.atomic import write_text
from ...flux2_train.bounded import from_json, read_text
from ...flux2_train.runs.folder import RunFolder
from .server import prompt_server

MOST_BYTES = 4 << 20  # of a workflow; one of 500 nodes has about 500 kB
TRAINER = "Flux2LoraTrainer"


def keep_graph(folder: Path) -> None:
    """Write the graph that runs now as ``workflow.json`` and ``prompt.json``. What fails is no reason to end a run."""
    try:
        prompt, workflow = _running()
        if not any(node.get("class_type") == TRAINER for node in prompt.values()):
            return  # a queued job has no graph: job.json says everything
        for path, value in ((RunFolder(folder).workflow, workflow), (RunFolder(folder).prompt, prompt)):
            text = json.dumps(value)
            if value and len(text) <= MOST_BYTES:
                write_text(path, text)
    except Exception as error:
        logging.debug("The graph could not be kept in %s: %r", folder, error)


def _running() -> tuple[dict, dict]:
    """(prompt, workflow) of the graph that runs now, each empty if there is none."""
    server = prompt_server()
    for item in list(server.prompt_queue.currently_running.values()) if server else ():
        extra = item[3] if len(item) > 3 and isinstance(item[3], dict) else {}
        return item[2], (extra.get("extra_pnginfo") or {}).get("workflow") or {}
    return {}, {}


def kept_graph(folder: RunFolder) -> dict[str, dict]:
    """``workflow`` and ``prompt`` of a run as they were kept, each empty if it was not or cannot be read."""
    return {name: _read(path) for name, path in (("workflow", folder.workflow), ("prompt", folder.prompt))}


def _read(path: Path) -> dict:
    try:
        value = from_json(read_text(path, MOST_BYTES))
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
