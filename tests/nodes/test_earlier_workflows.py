"""Workflows that people have saved: every widget and output of a node that was ever there still is, in its order.

ComfyUI keeps a widget's value by its place among the widgets, and a wire by its input's name and its output's place.
The sockets for option nodes have become one that grows; what is wired into the earlier ones still counts.
"""

import importlib
import json
from pathlib import Path

import pytest

EARLIER = json.loads(Path(__file__).with_name("earlier_inputs.json").read_text())
TAKES_OPTIONS = {
    "nodes.train": ("Flux2LoraTrainer", "EARLIER"),
    "nodes.dataset_folder": ("Flux2DatasetFolder", "SECTIONS"),
}
OPTIONS = {f"FLUX2_{name}" for name in (
    "OBJECTIVE", "TIMESTEPS", "OPTIMIZER", "PRESERVATION", "VALIDATION", "VALIDATION_LOSS", "SAVE_OPTIONS",
    "CHECKPOINTS", "ADAPTER_OPTIONS", "MEMORY",
)}  # fmt: skip
OF_DATASET = {f"FLUX2_{name}_OPTIONS" for name in ("CAPTION", "CROP", "MASK", "REFERENCE")}


@pytest.fixture(scope="module")
def nodes(pack):
    return {node.GET_SCHEMA().node_id: node for node in pack.NODES}


@pytest.fixture(scope="module")
def moved(pack):
    """Names of the sockets of earlier versions that a node still takes, by the node."""
    return {
        node: getattr(importlib.import_module(f"{pack.__name__}.{module}"), names)
        for module, (node, names) in TAKES_OPTIONS.items()
    }


def now(kind: str) -> str:
    """The wire type that one of an earlier version has become."""
    return "FLUX2_OPTIONS" if kind in OPTIONS else "FLUX2_DATASET_OPTIONS" if kind in OF_DATASET else kind


def kind_of(entry) -> str:
    return "COMBO" if isinstance(entry[0], list) else entry[0]


@pytest.mark.parametrize("node", EARLIER)
def test_a_workflow_of_an_earlier_version_opens(nodes, moved, node):
    info = nodes[node].GET_NODE_INFO_V1()
    info = info if isinstance(info, dict) else vars(info)
    inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
    known = [(n, now(kind)) for n, kind in EARLIER[node]["inputs"].items() if n not in moved.get(node, ())]
    found = [(name, kind_of(entry)) for name, entry in inputs.items()]
    assert [pair for pair in found if pair in known] == known
    assert info["output"][: len(EARLIER[node]["outputs"])] == [now(kind) for kind in EARLIER[node]["outputs"]]


def test_every_socket_for_options_of_an_earlier_version_is_still_taken(moved):
    """That it reaches the run is shown where nodes are run: test_nodes_trainer.py and test_dataset_nodes.py."""
    for node, names in moved.items():
        sockets = [name for name, kind in EARLIER[node]["inputs"].items() if kind in OPTIONS | OF_DATASET]
        assert sorted(sockets) == sorted(names)


def test_the_browser_moves_the_same_sockets(moved):
    script = (Path(__file__).resolve().parents[2] / "web" / "earlier.js").read_text()
    table = script[script.index("EARLIER = ") : script.index("const WIRES")]
    for node, names in moved.items():
        listed = table[table.index(node) :]
        listed = listed[: listed.index("]")]
        assert [part for part in listed.split('"')[1::2]] == list(names)
