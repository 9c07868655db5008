"""What ComfyUI's main.py does on this computer. It is read and not imported: importing it would start the server."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from pathlib import Path

SUPPORTED = "dynamic_vram_supported"
SVM_SIZE = re.compile(r"""OCL_SET_SVM_SIZE['"]\] = ['"](\d+)['"]""")
FIRST_CARD = re.compile(r"""CUDA_VISIBLE_DEVICES['"]\] = ['"]0['"]""")


def text() -> str:
    """The text of main.py, empty if it is not there."""
    path = Path(importlib.import_module("comfy.cli_args").__file__).parents[1] / "main.py"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def supports_dynamic_vram() -> bool | None:
    """Whether ComfyUI uses dynamic VRAM on this card. None where no function says so, as up to 0.30.0."""
    for node in ast.parse(text()).body:
        if isinstance(node, ast.FunctionDef) and node.name == SUPPORTED:
            names = {"comfy": sys.modules["comfy"]}
            exec(compile(ast.Module([node], []), "main.py", "exec"), names)  # noqa: S102  ComfyUI's own function
            try:
                return bool(names[SUPPORTED]())
            except (NameError, AttributeError):  # it asks something else of main.py, which has not run here
                return None
    return None


def svm_size() -> str:
    """The bytes of shared virtual memory that ROCm gets."""
    found = SVM_SIZE.search(text())
    return found[1] if found else "262144"


def shows_one_card() -> bool:
    """Whether ComfyUI shows torch one card on Windows, unless its command line names others."""
    return bool(FIRST_CARD.search(text()))
