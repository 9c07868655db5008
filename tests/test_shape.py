"""No function and no file is longer than one can read at once."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(p for p in ROOT.rglob("*.py") if not any(part.startswith(".") for part in p.relative_to(ROOT).parts))
LINES, FUNCTION = 350, 60
SCHEMA = "define_schema"  # a node's inputs, one after the other


def functions(path: Path) -> dict[str, int]:
    """Lines of every function in a file."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    found = [node for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    return {f"{node.name}:{node.lineno}": node.end_lineno - node.lineno + 1 for node in found}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LINES
    long = {name: lines for name, lines in functions(path).items() if lines > FUNCTION}
    assert not [name for name in long if name.partition(":")[0] != SCHEMA]


def test_lines_are_counted(tmp_path):
    path = tmp_path / "a.py"
    path.write_text("class A:\n    async def long(self):\n" + "        pass\n" * 60 + "\ndef short(): pass\n")
    assert functions(path) == {"long:2": 61, "short:64": 1} and len(FILES) > 300
