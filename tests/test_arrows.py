"""Who may import whom: arrows between the rooms point one way, and no modules import each other in a circle."""

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENGINE = "flux2_train"
# From the top to the bottom. A room imports those of lower rows only; docs/engine.md begins with the same table.
ROWS = (
    ("nodes", "terminal"),
    ("runs",),
    ("evaluate",),
    ("train",),
    ("host", "data"),
    ("streaming",),
    ("planning",),
    ("adapters", "flow", "importers"),
    ("settings", "events"),
    ("formats", "flavours"),
    ("nano",),
    ("geometry", "hashing", "atomic", "safetensors_header"),
    ("bounded",),
    ("errors",),
    ("names",),
)
LEVEL = {room: number for number, row in enumerate(ROWS) for room in row}
# ``host`` is where ComfyUI's internals are known; the nodes are ComfyUI's, and the terminal asks it for folders.
COMFYUI = ("comfy", "comfy_extras", "comfy_api", "comfy_kitchen", "folder_paths", "nodes", "server", "execution",
           "latent_preview", "node_helpers")  # fmt: skip
WITH_COMFYUI = {"host", "nodes", "terminal"}


def files() -> dict[str, Path]:
    """Every module of the engine and of the nodes by its dotted name."""
    found = [path for part in (ENGINE, "nodes") for path in sorted((ROOT / part).rglob("*.py"))]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in found}


MODULES = files()


def room(module: str) -> str:
    """The room of a module: the part below the engine; the package itself and ``__main__`` have none."""
    parts = module.split(".")
    return "nodes" if parts[0] == "nodes" else parts[1] if len(parts) > 1 and parts[1] != "__main__" else ""


@cache
def imports(module: str) -> tuple[set[str], set[str], bool]:
    """(our modules, names of other packages, whether one of ours is imported for the checker of types alone)."""
    path = MODULES[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    ours, others = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            others |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom) and not node.level:
            others.add(node.module.split(".")[0])
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            for alias in node.names:
                inner = ".".join([*filter(None, base), alias.name])
                ours.add(inner if inner in MODULES else ".".join(filter(None, base)))
    hidden = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    return ours, others, any(isinstance(n, ast.ImportFrom) and n.level for node in hidden for n in ast.walk(node))


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_lower_rooms_only(module):
    ours, others, hidden = imports(module)
    own = room(module)
    assert not hidden, "TYPE_CHECKING hides an arrow"
    if not own:
        return
    upwards = {other for other in map(room, ours) if other and other != own and LEVEL[other] <= LEVEL[own]}
    assert not upwards
    assert own in WITH_COMFYUI or not others & set(COMFYUI)


def test_every_room_is_in_the_table():
    assert {room(module) for module in MODULES} - {""} == set(LEVEL)


def test_no_modules_import_each_other():
    graph = {module: imports(module)[0] & MODULES.keys() for module in MODULES}
    try:
        TopologicalSorter({module: needed - {module} for module, needed in graph.items()}).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_the_formulas_need_nothing_of_ours():
    needed = set().union(*(imports(module)[0] for module in MODULES if room(module) == "flow"))
    assert {room(module) for module in needed} <= {"flow"}


@pytest.mark.parametrize("folder", sorted({path.parent for path in MODULES.values()}), ids=str)
def test_a_folder_is_small_enough_to_know(folder):
    assert len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) <= 24
