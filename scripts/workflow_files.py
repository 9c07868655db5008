"""A graph as the two files that ComfyUI reads: UI JSON for the template browser, API JSON to queue."""

from __future__ import annotations

from dataclasses import dataclass, field

WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
GROUP = "#7468b8"
NOTE = "MarkdownNote"  # a node of the frontend's own: no server knows it


@dataclass
class Node:
    """A node of a graph: its widgets by name, its links by input name as (node, output index), and its place."""

    type: str
    title: str
    widgets: dict = field(default_factory=dict)
    links: dict[str, tuple[Node, int]] = field(default_factory=dict)
    models: list[dict] = field(default_factory=list)
    at: tuple[int, int] = (0, 0)
    size: tuple[int, int] = (320, 120)


@dataclass
class Reroute:
    """A point on the way of wires that leave the same output, behind another such point or the output itself."""

    at: tuple[int, int]
    before: Reroute | None
    wires: list[tuple[Node, str]] = field(default_factory=list)  # target and its input's name


@dataclass(frozen=True)
class Drawing:
    """A graph that is laid out. ``groups`` are (title, x, y, width, height); notes are (text, x, y, width, height)."""

    nodes: list[Node]
    notes: list[tuple]
    groups: list[tuple]
    reroutes: list[Reroute]
    view: tuple[float, tuple[int, int]]  # scale and offset with which it opens


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


def ui_format(drawing: Drawing, info: dict) -> dict:
    """What the frontend opens (workflow JSON version 0.4)."""
    nodes = drawing.nodes
    ids = {id(node): number for number, node in enumerate(nodes, 1)}
    drawn = [_drawn(node, ids[id(node)], info) for node in nodes]
    links, numbers = [], {}
    for node, box in zip(nodes, drawn, strict=True):
        for name, (source, output) in node.links.items():
            number = numbers[id(node), name] = len(links) + 1
            slot = next(i for i, entry in enumerate(box["inputs"]) if entry["name"] == name)
            box["inputs"][slot]["link"] = number
            drawn[ids[id(source)] - 1]["outputs"][output]["links"].append(number)
            links.append([number, ids[id(source)], output, ids[id(node)], slot, box["inputs"][slot]["type"]])
    notes = [_note(number, note) for number, note in enumerate(drawing.notes, len(nodes) + 1)]
    groups = [{"id": number, "title": title, "bounding": box, "color": GROUP, "font_size": 28, "flags": {}}
              for number, (title, *box) in enumerate(drawing.groups, 1)]  # fmt: skip
    scale, offset = drawing.view
    extra = {
        "flux2_train": {"template": True},
        "ds": {"scale": scale, "offset": list(offset)},
        **_reroutes(drawing.reroutes, numbers),
    }
    return {
        "last_node_id": len(nodes) + len(notes), "last_link_id": len(links), "nodes": drawn + notes, "links": links,
        "groups": groups, "config": {}, "extra": extra, "version": 0.4,
    }  # fmt: skip


def _reroutes(reroutes: list[Reroute], numbers: dict) -> dict:
    """The points on the way of wires, and for each wire the last of them."""
    ids = {id(point): number for number, point in enumerate(reroutes, 1)}
    listed, last = [], {}
    for point in reroutes:
        wires = [numbers[id(target), name] for target, name in point.wires]
        parent = {"parentId": ids[id(point.before)]} if point.before else {}
        listed.append({"id": ids[id(point)], **parent, "pos": list(point.at), "linkIds": wires})
        last |= dict.fromkeys(wires, ids[id(point)])
    extensions = [{"id": link, "parentId": point} for link, point in sorted(last.items())]
    return {"reroutes": listed, "linkExtensions": extensions} if listed else {}


def _drawn(node: Node, number: int, infos: dict) -> dict:
    info, sockets, values = infos[node.type], [], []
    for name, kind, options in inputs_of(info):
        if kind in WIDGET_TYPES:
            values.append(widget_value(node, name, kind, options))
            if options.get("control_after_generate"):
                values.append("fixed")
        elif kind.startswith("COMFY_AUTOGROW"):
            sockets += _grown(name, options, node, infos)
        else:
            sockets.append({"name": name, "type": kind, "link": None})
    outputs = [
        {"name": name, "type": kind, "links": [], "slot_index": index}
        for index, (name, kind) in enumerate(zip(info["output_name"], info["output"], strict=True))
    ]
    properties = {"Node name for S&R": node.type}
    if node.models:
        properties["models"] = node.models
    # a node's own name is left out: ComfyUI then shows it in the reader's language
    title = {} if node.title == info["display_name"] else {"title": node.title}
    return {
        "id": number, "type": node.type, **title, "pos": list(node.at), "size": list(node.size),
        "flags": {}, "order": number - 1, "mode": 0, "inputs": sockets, "outputs": outputs,
        "properties": properties, "widgets_values": values,
    }  # fmt: skip


def _grown(name: str, options: dict, node: Node, infos: dict) -> list[dict]:
    """The sockets of a growing input that are wired, called after what is wired in; the frontend adds the free one."""
    (kind,) = (spec[0] for inputs in options["template"]["input"].values() for spec in inputs.values())
    wired = {each: link for each, link in node.links.items() if each.startswith(f"{name}.")}
    labels = {each: infos[source.type]["output_name"][output] for each, (source, output) in wired.items()}
    return [{"name": each, "label": label, "type": kind, "link": None} for each, label in labels.items()]


def _note(number: int, note: tuple) -> dict:
    text, x, y, width, height = note
    return {
        "id": number, "type": NOTE, "title": "Note", "pos": [x, y], "size": [width, height], "flags": {},
        "order": number - 1, "mode": 0, "inputs": [], "outputs": [], "properties": {}, "widgets_values": [text],
        "color": "#4a431f", "bgcolor": "#33301c",
    }  # fmt: skip
