"""Every module of the engine, of the nodes and of the benches can be imported."""

import ast
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


def named_imports():
    """(file, module, name) of everything of ours that is imported by name, also inside functions."""
    for path in sorted(path for part in (*PARTS, "tests", "scripts") for path in (ROOT / part).rglob("*.py")):
        package = path.relative_to(ROOT).with_suffix("").parts[:-1]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                base = package[: len(package) - node.level + 1] if node.level else ()
                module = ".".join(filter(None, (*base, node.module)))
                if module.startswith(("flux2_train", "bench")):
                    yield from ((str(path.relative_to(ROOT)), module, alias.name) for alias in node.names)


def test_every_name_that_is_imported_is_there():
    imports = list(named_imports())
    assert len(imports) > 1000 and [entry for entry in imports if not _has(*entry[1:])] == []


def _has(module: str, name: str) -> bool:
    return name == "__main__" or hasattr(importlib.import_module(module), name) or f"{module}.{name}" in MODULES
