"""Every module of the engine, of the nodes and of the benches can be imported."""

import importlib
import pkgutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("flux2_train", "nodes", "bench")
MODULES = [
    module.name
    for part in PARTS
    for module in pkgutil.walk_packages([str(ROOT / part)], f"{part}.")
    if not module.name.endswith("__main__")
]


@pytest.mark.parametrize("name", MODULES)
def test_a_module_can_be_imported(pack, name):
    """The nodes as ComfyUI imports them: inside the pack, because ComfyUI has a module ``nodes`` of its own."""
    importlib.import_module(f"{pack.__name__}.{name}" if name.startswith("nodes.") else name)


def test_there_are_modules_to_import():
    assert len([name for name in MODULES if name.startswith("flux2_train.")]) > 100
