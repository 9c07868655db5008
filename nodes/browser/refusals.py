"""Refuses a graph that cannot run before ComfyUI queues it, in the form in which ComfyUI itself refuses one.

``validate_inputs`` of a node sees that node alone, and ComfyUI blames every input that it asks for. Here the whole
prompt is seen, and each sentence stands on the input that it is about.
"""

from __future__ import annotations

import asyncio
import json
import logging

import server
from aiohttp import web

from .checks import Problem, problems

OURS = "flux2_train"  # in an error's extra_info, for web/errors.js
PATHS = ("/prompt", "/api/prompt")


@web.middleware
async def check_first(request: web.Request, handler) -> web.StreamResponse:
    """Look at a prompt before ComfyUI does. A prompt that cannot be read is ComfyUI's to refuse."""
    if request.method == "POST" and request.path in PATHS:
        found = await _found(request)
        if found:
            prompt = (await request.json())["prompt"]
            return web.json_response(refusal(prompt, found), status=400)
    return await handler(request)


async def _found(request: web.Request) -> dict[str, list[Problem]]:
    try:
        body = json.loads(await request.read())  # aiohttp keeps it for the next reader
        prompt, targets = body["prompt"], body.get("partial_execution_targets")
        outputs = [id for id in prompt if _is_output(prompt[id]) and (targets is None or id in targets)]
        return await asyncio.to_thread(problems, prompt, outputs)
    except Exception as error:  # a check must never keep a good graph from running
        logging.debug("The graph was not checked before its run: %r", error)
        return {}


def _is_output(entry: dict) -> bool:
    return bool(getattr(server.nodes.NODE_CLASS_MAPPINGS.get(entry["class_type"]), "OUTPUT_NODE", False))


def refusal(prompt: dict, found: dict[str, list[Problem]]) -> dict:
    """ComfyUI's answer for a prompt with these problems."""
    sentences = [sentence for wrong in found.values() for _, sentence in wrong]
    for sentence in sentences:
        logging.error("%s", sentence)
    error = {
        "type": "prompt_outputs_failed_validation", "message": sentences[0], "details": "\n".join(sentences[1:]),
        "extra_info": {},
    }  # fmt: skip
    return {"error": error, "node_errors": {id: _of_node(prompt[id], wrong) for id, wrong in found.items()}}


def _of_node(entry: dict, wrong: list[Problem]) -> dict:
    errors = [
        {"type": "custom_validation_failed", "message": sentence, "details": name,
         "extra_info": {"input_name": name, OURS: True}}
        for name, sentence in wrong
    ]  # fmt: skip
    return {"errors": errors, "dependent_outputs": [], "class_type": entry.get("class_type", "")}
