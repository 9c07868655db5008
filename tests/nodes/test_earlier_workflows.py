"""Workflows that people have saved: every input and output of a node that was ever there still is, in its order.

ComfyUI keeps a widget's value by its place among the widgets, and a wire by its input's name and its output's place.
"""

import json
from pathlib import Path

import pytest

EARLIER = json.loads(Path(__file__).with_name("earlier_inputs.json").read_text())


@pytest.fixture(scope="module")
def nodes(pack):
    return {node.GET_SCHEMA().node_id: node for node in pack.NODES}


def kind_of(entry) -> str:
    return "COMBO" if isinstance(entry[0], list) else entry[0]


@pytest.mark.parametrize("node", EARLIER)
def test_a_workflow_of_an_earlier_version_opens(nodes, node):
    info = nodes[node].GET_NODE_INFO_V1()
    info = info if isinstance(info, dict) else vars(info)
    inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
    known = [(name, kind) for name, kind in EARLIER[node]["inputs"].items()]
    now = [(name, kind_of(entry)) for name, entry in inputs.items()]
    assert [pair for pair in now if pair in known] == known
    assert info["output"][: len(EARLIER[node]["outputs"])] == EARLIER[node]["outputs"]
