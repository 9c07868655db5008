"""ComfyUI's module nodes.py and our folder nodes/ have the same name: ComfyUI's must win outside of it too."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flux2_train.nano import TRANSFORMER

ROOT = Path(__file__).resolve().parents[3]


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True
    )


@pytest.mark.long
def test_core_nodes_module_wins_from_the_repository_root():
    imported = "from flux2_train.host.system.bootstrap import import_comfyui as i"
    code = f"{imported}; print(i()); import nodes; print(nodes.__file__)"
    comfyui, nodes = python("-c", code).stdout.splitlines()[-2:]
    assert nodes == f"{comfyui}/nodes.py"


def test_pytest_itself_imports_core_nodes():
    import nodes

    assert Path(nodes.__file__).parent == Path(os.environ["COMFYUI_PATH"])


@pytest.mark.long
def test_terminal_lists_flavours():
    done = python("-m", "flux2_train", "flavours")
    assert done.returncode == 0, done.stderr
    assert "flux-2-klein-base-9b.safetensors: missing" in done.stdout
    assert TRANSFORMER in done.stdout


@pytest.mark.long
def test_wrong_comfyui_path_is_one_clear_line(tmp_path):
    done = python("-m", "flux2_train", "flavours", COMFYUI_PATH=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.strip() == (
        f"error: COMFYUI_PATH={tmp_path} holds no ComfyUI; set COMFYUI_PATH to a ComfyUI folder or run scripts/test "
        "once to fetch one."
    )
