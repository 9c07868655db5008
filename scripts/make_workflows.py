"""Writes the shipped workflows: one description each, as UI JSON for the template browser and as API JSON to queue.

``python scripts/make_workflows.py`` (in the environment of scripts/test) asks a real server for the nodes' inputs,
so the files always fit the nodes; a test checks that the committed ones are what this prints.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from flux2_train.flavours import BASE, FLAVOURS, Flavour, ModelFile  # noqa: E402

WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}


@dataclass
class Node:
    """A node of a graph: where it stands, its widgets by name, its links by input name as (node, output index)."""

    type: str
    title: str
    at: tuple[int, int]
    size: tuple[int, int] = (320, 120)
    widgets: dict = field(default_factory=dict)
    links: dict[str, tuple[Node, int]] = field(default_factory=dict)
    models: list[dict] = field(default_factory=list)


@dataclass(frozen=True)
class Settings:
    """What differs between the workflows."""

    flavour: Flavour
    files: tuple[ModelFile, ...]
    dataset: dict
    trainer: dict
    prompts: tuple[str, ...]
    previews: dict = field(default_factory=dict)  # Validation's widgets where they differ

    @property
    def resolution(self) -> int:
        return self.flavour.resolution


FILE_INPUTS = {"diffusion_models": "transformer", "text_encoders": "text_encoder", "vae": "vae"}


def template_files(name: str) -> tuple[ModelFile, ...]:
    """The files of ComfyUI's own templates: fp8 where the bf16 file is gated and twice as large.

    They are named in the widgets, because ComfyUI's missing-model dialog only offers files that a widget asks for.
    """
    row = FLAVOURS[name]
    base = row.transformer_files(BASE)
    return (next((f for f in base if "fp8" in f.name and base[0].gated), base[0]), row.text_encoders[0], row.vaes[0])


ROBOT = {"folder": "robot", "trigger": "zbot", "class_word": "robot"}
ROBOT_PROMPTS = ("zbot robot waving on a green meadow", "a robot waving on a green meadow")
# nano learns in a hundred steps what takes large models a thousand; preservation keeps "figure" what it was.
NANO = Settings(
    FLAVOURS["nano"],
    (),
    {"folder": "character", "trigger": "vorn", "class_word": "figure"},
    {"name": "vorn_nano", "steps": 100, "learning_rate": 2e-3, "preservation": 1.0, "checkpointing": False},
    (
        "vorn figure, a circle above a triangle on a dotted gray background",
        "figure, a circle above a triangle on a dotted gray background",
    ),
    # half way and at the end, in a few seconds: before the first step base and LoRA are the same picture
    {"width": 128, "height": 128, "steps": 4, "every": 50, "at_start": False},
)
WORKFLOWS = {"flux2_lora_nano": NANO} | {
    f"flux2_lora_{name}": Settings(FLAVOURS[name], template_files(name), ROBOT, {"name": f"zbot_{name}"}, ROBOT_PROMPTS)
    for name in ("klein-9b", "klein-4b", "dev")
}


def build(settings: Settings) -> list[Node]:
    """The whole path: load, dataset, caches, train, apply, and each prompt painted without and with the LoRA."""
    row = settings.flavour
    load = Node("Flux2Load", "Load FLUX.2", (0, 0), (320, 220), 
                {"flavour": row.name} | {FILE_INPUTS[f.folder]: f.name for f in settings.files},
                models=[{"name": f.name, "url": f.url, "directory": f.folder} for f in settings.files])  # fmt: skip
    dataset = Node(
        "Flux2DatasetFolder",
        "Dataset Folder",
        (0, 280),
        (320, 320),
        {**settings.dataset, "resolution": settings.resolution},
    )
    embeds = Node(
        "Flux2CacheEmbeds", "Cache Embeds", (380, 160), (260, 80), links={"clip": (load, 1), "dataset": (dataset, 0)}
    )
    latents = Node(
        "Flux2CacheLatents", "Cache Latents", (380, 300), (260, 80), links={"vae": (load, 2), "dataset": (dataset, 0)}
    )
    trainer = Node(
        "Flux2LoraTrainer", "LoRA Trainer", (700, 0), (360, 560),
        settings.trainer,
        {"model": (load, 0), "embeds": (embeds, 0), "latents": (latents, 0)},
    )  # fmt: skip
    apply = Node(
        "Flux2LoraApply", "LoRA Apply", (1120, 0), (320, 160), links={"model": (load, 0), "lora": (trainer, 0)}
    )
    plot = Node(
        "SaveImage", "loss plot", (1120, 220), (320, 300), {"filename_prefix": "flux2/loss"}, {"images": (trainer, 3)}
    )
    validation = _validation(settings, load)
    embeds.links["validation"] = trainer.links["validation"] = (validation, 0)
    nodes = [load, dataset, embeds, latents, trainer, apply, plot]
    for column, prompt in enumerate(settings.prompts, 1):
        for line, (label, source) in enumerate((("base", load), ("lora", apply))):
            place = (1500 + 740 * line, 560 * (column - 1))
            nodes += _picture(settings, load, source, prompt, f"{label} {column}", place)
    return [*nodes, validation]


def _validation(settings: Settings, load: Node) -> Node:
    """The prompts that are painted in the end, while training; at half the size, which takes a quarter of the time."""
    side = settings.resolution // 2
    return Node(
        "Flux2Validation", "Validation", (380, 440), (300, 360),
        {"prompts": "\n".join(settings.prompts), "width": side, "height": side, "seed": 7, **settings.previews},
        {"vae": (load, 2)},
    )  # fmt: skip


def _picture(settings: Settings, load: Node, source: Node, prompt: str, title: str, at: tuple[int, int]) -> list[Node]:
    size = settings.resolution
    sampler = Node(
        "Flux2Sampler", f"FLUX.2 Sampler {title}", at, (340, 420),
        {"prompt": prompt, "width": size, "height": size, "seed": 7},
        {"model": (source, 0), "clip": (load, 1), "vae": (load, 2)},
    )  # fmt: skip
    save = Node(
        "SaveImage",
        title,
        (at[0] + 370, at[1]),
        (320, 420),
        {"filename_prefix": f"flux2/{title.replace(' ', '_')}"},
        {"images": (sampler, 0)},
    )
    return [sampler, save]


def inputs_of(info: dict) -> list[tuple[str, str, dict]]:
    """(name, type, options) of every input of a node, in the order in which the frontend lays them out."""
    listed = []
    for group in ("required", "optional"):
        for name, spec in info["input"].get(group, {}).items():
            kind = "COMBO" if isinstance(spec[0], list) else spec[0]
            options = spec[1] if len(spec) > 1 else {}
            listed.append((name, kind, {**options, "options": spec[0]} if isinstance(spec[0], list) else options))
    return listed


def widget_value(node: Node, name: str, kind: str, options: dict):
    """The node's own value for a widget, else its default."""
    if name in node.widgets:
        return node.widgets[name]
    if "default" in options:
        return options["default"]
    return options["options"][0] if kind == "COMBO" else {"STRING": "", "BOOLEAN": False}.get(kind, 0)


def api_format(nodes: list[Node], info: dict) -> dict:
    """What POST /prompt takes."""
    ids = {id(node): str(number) for number, node in enumerate(nodes, 1)}
    prompt = {}
    for node in nodes:
        inputs = {
            name: widget_value(node, name, kind, options)
            for name, kind, options in inputs_of(info[node.type])
            if kind in WIDGET_TYPES
        }
        inputs |= {name: [ids[id(source)], output] for name, (source, output) in node.links.items()}
        prompt[ids[id(node)]] = {"class_type": node.type, "inputs": inputs, "_meta": {"title": node.title}}
    return prompt


def ui_format(nodes: list[Node], info: dict) -> dict:
    """What the frontend opens (workflow JSON version 0.4)."""
    ids = {id(node): number for number, node in enumerate(nodes, 1)}
    links, drawn = [], []
    for node in nodes:
        drawn.append(_drawn(node, ids[id(node)], info[node.type]))
    for node, box in zip(nodes, drawn, strict=True):
        for name, (source, output) in node.links.items():
            number = len(links) + 1
            slot = next(i for i, entry in enumerate(box["inputs"]) if entry["name"] == name)
            box["inputs"][slot]["link"] = number
            origin = drawn[ids[id(source)] - 1]
            origin["outputs"][output]["links"].append(number)
            links.append([number, ids[id(source)], output, ids[id(node)], slot, box["inputs"][slot]["type"]])
    return {
        "last_node_id": len(nodes), "last_link_id": len(links), "nodes": drawn, "links": links, "groups": [],
        "config": {}, "extra": {}, "version": 0.4,
    }  # fmt: skip


def _drawn(node: Node, number: int, info: dict) -> dict:
    sockets, values = [], []
    for name, kind, options in inputs_of(info):
        if kind in WIDGET_TYPES:
            values.append(widget_value(node, name, kind, options))
            if options.get("control_after_generate"):
                values.append("fixed")
        elif not kind.startswith("COMFY_"):  # growing inputs are laid out by the frontend
            sockets.append({"name": name, "type": kind, "link": None})
    outputs = [
        {"name": name, "type": kind, "links": [], "slot_index": index}
        for index, (name, kind) in enumerate(zip(info["output_name"], info["output"], strict=True))
    ]
    properties = {"Node name for S&R": node.type}
    if node.models:
        properties["models"] = node.models
    return {
        "id": number, "type": node.type, "title": node.title, "pos": list(node.at), "size": list(node.size),
        "flags": {}, "order": number - 1, "mode": 0, "inputs": sockets, "outputs": outputs,
        "properties": properties, "widgets_values": values,
    }  # fmt: skip


def render(info: dict) -> dict[str, str]:
    """Every workflow file's text by its path below ``workflows/``."""
    files = {}
    for name, settings in WORKFLOWS.items():
        nodes = build(settings)
        files[f"{name}.json"] = json.dumps(ui_format(nodes, info), indent=1) + "\n"
        files[f"api/{name}.json"] = json.dumps(api_format(nodes, info), indent=1) + "\n"
    return files


def main() -> None:
    from comfy_server import ComfyServer

    os.environ.setdefault("COMFYUI_PATH", str(ROOT / ".comfyui"))
    with tempfile.TemporaryDirectory() as folder, ComfyServer(Path(folder)) as server:
        for path, text in render(server.get("/object_info")).items():
            target = ROOT / "workflows" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
            print(target.relative_to(ROOT))


if __name__ == "__main__":
    main()
