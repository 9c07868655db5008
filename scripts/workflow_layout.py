"""Lays a graph out from left to right: groups of columns, a note above each group, no wire under a node.

A wire to the next column runs through the gap between the two. A wire that goes further climbs in the gap behind its
node into a lane between notes and nodes, and comes down again in the gap before its target.
"""

from __future__ import annotations

from dataclasses import dataclass

from workflow_files import Drawing, Node, Reroute

# Width and height that a node takes in either renderer, after a run too: with its texts, and with its pictures where it
# shows some. Measured in the browser; tests/nodes/test_templates.py holds that nothing overlaps.
ROOM = {
    "Flux2Load": (300, 560),
    "Flux2DatasetFolder": (320, 800),
    "Flux2Validation": (320, 420),
    "Flux2CacheEmbeds": (280, 270),
    "Flux2CacheLatents": (280, 270),
    "Flux2Preservation": (280, 220),
    "Flux2AdapterOptions": (300, 240),
    "Flux2LoraTrainer": (680, 1120),
    "Flux2LoraApply": (300, 260),
    "Flux2CompareLoras": (560, 880),
    "Flux2Sampler": (360, 560),
    "LoadImage": (300, 420),
    "SaveImage": (400, 520),
}
PICTURE = {"SaveImage": 440, "LoadImage": 380}  # heights at open of nodes that are little but a picture
GAP, PAD = 120, 24  # between columns; around a group
HEAD, TITLE = 40, 30  # of a group; of a node, which lies above its place
NOTE = 170
LANE = 18
TOP = HEAD + TITLE  # of the notes
FIRST_LANE = TOP + NOTE + 24
VIEW = 0.72, (100, 130)  # scale and offset with which a graph opens: the first group beside the sidebar


@dataclass(frozen=True)
class Group:
    """Columns of nodes under one title, with one note that says what to change and what to expect."""

    title: str
    note: str
    columns: tuple[tuple[Node, ...], ...]


def drawing(groups: list[Group]) -> Drawing:
    """Places every node, note and group, and leads every wire around the nodes."""
    columns = [column for group in groups for column in group.columns]
    place = {id(node): number for number, column in enumerate(columns) for node in column}
    lefts = _lefts(columns)
    lanes = _lanes(columns, place)
    top = FIRST_LANE + LANE * len(lanes) + 24 + TITLE
    bottom = max(_stacked(column, left, top) for column, left in zip(columns, lefts, strict=True)) + PAD
    reroutes = _wires(columns, place, lanes, lefts)
    notes, boxes, at = [], [], 0
    for group in groups:
        last = at + len(group.columns) - 1
        left, right = lefts[at], lefts[last] + _width(columns[last])
        notes.append((group.note, left, TOP, right - left, NOTE))
        boxes.append((group.title, left - PAD, 0, right - left + 2 * PAD, bottom))
        at = last + 1
    nodes = [node for column in columns for node in column]
    return Drawing(_numbered(nodes), notes, boxes, reroutes, VIEW)


def _numbered(nodes: list[Node]) -> list[Node]:
    """Nodes in the order of their numbers: model, data, caches and trainer, then all others from left to right."""
    order = ["Flux2Load", "Flux2DatasetFolder", "Flux2CacheEmbeds", "Flux2CacheLatents", "Flux2LoraTrainer"]
    return sorted(nodes, key=lambda node: order.index(node.type) if node.type in order else len(order))


def _width(column: tuple[Node, ...]) -> int:
    return max(ROOM[node.type][0] for node in column)


def _lefts(columns: list[tuple[Node, ...]]) -> list[int]:
    lefts = [PAD]
    for column in columns[:-1]:
        lefts.append(lefts[-1] + _width(column) + GAP)
    return lefts


def _stacked(column: tuple[Node, ...], left: int, top: int) -> int:
    """Place a column's nodes one below the other; returns where it ends."""
    for node in column:
        width, height = ROOM[node.type]
        node.at, node.size = (left, top), (width, PICTURE.get(node.type, 100))
        top += height + TITLE + 20
    return top - TITLE


def _far(columns: list[tuple[Node, ...]], place: dict[int, int]) -> list[tuple[int, tuple[Node, int], Node, str]]:
    """(column of the target, output, target, input) of every wire that passes a column, the nearest first."""
    wires = [
        (place[id(node)], link, node, name)
        for column in columns
        for node in column
        for name, link in node.links.items()
    ]
    for column, (source, _), node, name in wires:
        if place[id(source)] >= column:
            raise ValueError(f"{name} of {node.title} comes from {source.title}, which is not to its left.")
    return sorted((wire for wire in wires if wire[0] - place[id(wire[1][0])] > 1), key=lambda wire: wire[0])


def _lanes(columns: list[tuple[Node, ...]], place: dict[int, int]) -> dict[tuple[int, int], int]:
    """A lane for every output whose wires pass a column, by (id of the node, output)."""
    outputs = dict.fromkeys((id(source), output) for _, (source, output), *_ in _far(columns, place))
    return {output: number for number, output in enumerate(outputs)}


def _wires(columns: list, place: dict[int, int], lanes: dict, lefts: list[int]) -> list[Reroute]:
    """The points that lead wires through their lanes; wires from one output share theirs as far as they go together."""
    made: dict[tuple[int, int], dict[int, Reroute]] = {}
    for column, (source, output), node, name in _far(columns, place):
        lane = lanes[id(source), output]
        points = made.setdefault((id(source), output), {})
        before = None
        for gap in sorted({place[id(source)] + 1, *points, column}):
            if gap not in points:
                points[gap] = Reroute(_point(lefts[gap], lane, len(lanes)), before)
            before = points[gap]
            before.wires.append((node, name))
    return [point for points in made.values() for point in points.values()]


def _point(right: int, lane: int, lanes: int) -> tuple[int, int]:
    """Where a lane meets the gap that ends at ``right``: each lane a little further left, so that wires stay apart."""
    return right - GAP // 2 + round((lane - (lanes - 1) / 2) * -8), FIRST_LANE + LANE * lane
