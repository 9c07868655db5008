"""What nodes show on themselves: told to every open tab, and kept for tabs that are opened or reloaded later."""

from __future__ import annotations

import base64
import io
from collections import OrderedDict
from dataclasses import dataclass, replace

from comfy_api.latest import ui
from PIL import Image
from torch import Tensor

from .server import prompt_server

EVENT = "flux2_train.shown"
MOST_WORKFLOWS, MOST_NODES, MOST_CHARACTERS = 16, 64, 20_000
TEXT, IMAGES = "flux2_text", "flux2_images"  # keys of a node's ``ui`` output, which web/shown.js reads


@dataclass(frozen=True)
class Shown:
    """``picture`` is a data URL that lives as long as the run, ``images`` are files that ComfyUI serves."""

    text: str = ""
    picture: str = ""
    images: tuple[dict, ...] = ()

    def plain(self) -> dict:
        """As JSON."""
        return {"text": self.text, "picture": self.picture, "images": list(self.images)}


class Board:
    """The newest of every node, by workflow. Bounded: the oldest workflow and the oldest node give way."""

    def __init__(self):
        self.workflows: OrderedDict[str, OrderedDict[str, Shown]] = OrderedDict()

    def put(self, workflow: str, node: str, **changes) -> Shown:
        """Change what a node shows, and return all that it shows now."""
        nodes = self.workflows.setdefault(workflow, OrderedDict())
        nodes[node] = replace(nodes.get(node, Shown()), **changes)
        for ordered, key, most in ((self.workflows, workflow, MOST_WORKFLOWS), (nodes, node, MOST_NODES)):
            ordered.move_to_end(key)
            while len(ordered) > most:
                ordered.popitem(last=False)
        return nodes[node]

    def of(self, workflow: str) -> dict[str, dict]:
        """What each node of a workflow shows, by its id."""
        return {node: shown.plain() for node, shown in self.workflows.get(workflow, {}).items()}


BOARD = Board()


def show(node: str, **changes) -> None:
    """Change what a node shows, in every tab that has the workflow open."""
    server = prompt_server()
    if server is None:
        return
    workflow = running_workflow()
    shown = BOARD.put(workflow, str(node), **changes)
    server.send_sync(EVENT, {"workflow": workflow, "node": str(node), **shown.plain()})


def keep(node: str, text: str, image: Tensor | None = None, cls: type | None = None) -> dict:
    """The ``ui`` output of a node: a text and an image (B, H, W, 3) that stay when the job has ended."""
    images = ui.PreviewImage(image, cls=cls).as_dict()["images"] if image is not None else []
    images = [dict(each) for each in images]
    show(node, text=text[:MOST_CHARACTERS], picture="", images=tuple(images))
    return {TEXT: [text[:MOST_CHARACTERS]], **({IMAGES: images} if images else {})}


def picture_url(picture: Image.Image) -> str:
    """A picture as a data URL, small enough for a message every few seconds."""
    held = io.BytesIO()
    picture.convert("RGB").save(held, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(held.getvalue()).decode()}"


def running_workflow() -> str:
    """The id of the workflow that runs now, empty for a graph that a script has queued."""
    server = prompt_server()
    if server is None:
        return ""
    for running in list(server.prompt_queue.currently_running.values()):
        extra = running[3] if len(running) > 3 and isinstance(running[3], dict) else {}
        workflow = (extra.get("extra_pnginfo") or {}).get("workflow") or {}
        return str(workflow.get("id") or "")
    return ""
