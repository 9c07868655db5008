"""ComfyUI's memory management is started as its own main.py does it, statement by statement, on any card."""

import json
import os
import subprocess
import sys
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from conftest import ROOT

from flux2_train.host.system import main_py, starting
from flux2_train.host.system.bootstrap import find_comfyui

MAIN = (find_comfyui() / "main.py").read_text()
NEWER = f"def {main_py.SUPPORTED}(" in MAIN  # from 0.33.0 on it decides by more than the maker of the card
ELSE = "ComfyUI does not use it on this card"
pytestmark = pytest.mark.skipif(
    "comfy_aimdo.control.init_devices(" not in MAIN, reason="this ComfyUI starts no comfy-aimdo, or in another way"
)
CARDS = {  # the card and ComfyUI's options: whether dynamic VRAM is on, and why not
    "one": ({}, [], True, ""),
    "two": ({"cards": 2}, [], True, ""),
    "reserved": ({}, ["--reserve-vram", "2", "--vram-headroom", "0.5", "--disable-nvml-pressure"], True, ""),
    "second": ({}, ["--cuda-device", "1", "--deterministic"], True, ""),
    "default": ({}, ["--default-device", "2", "--disable-cuda-malloc"], True, ""),
    "old protocol": ({"protocol": 1}, ["--reserve-vram", "1"], True, ""),
    "older protocol": ({"protocol": 2}, ["--reserve-vram", "1"], True, ""),
    "wsl": ({"wsl": True}, [], NEWER, "" if NEWER else "this is WSL"),
    "amd": ({"nvidia": False, "rocm": [7, 0]}, [], False, ELSE if NEWER else "the card is not NVIDIA's"),
    "amd, new": ({"nvidia": False, "rocm": [7, 14]}, [], NEWER, "" if NEWER else "the card is not NVIDIA's"),
    "amd, forced": ({"nvidia": False}, ["--enable-dynamic-vram"], True, ""),
    "old torch": ({"torch": [2, 7]}, [], False, "torch is older than 2.8"),
    "asked not to": ({}, ["--disable-dynamic-vram"], False, "ComfyUI's command line turns it off"),
    "highvram": ({}, ["--highvram"], False, "ComfyUI's command line turns it off"),
    **({"all": ({"cards": 2}, ["--cuda-device", "all", "--default-device", "1"], True, "")} if NEWER else {}),
    "broken": ({"works": False}, [], False, "comfy-aimdo does not work with this card or driver"),
}


def started(who: str, name: str) -> dict:
    card, options, *_ = CARDS[name]
    command = [sys.executable, "tests/processes/start_probe.py", who, json.dumps(card), *options]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def environment() -> dict:
    left_out = ("PYTORCH_CUDA_ALLOC_CONF", "CUBLAS_WORKSPACE_CONFIG", "CUDA_VISIBLE_DEVICES", "WORLD_SIZE")
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    return {**kept, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), kept.get("PYTHONPATH")]))}


def compare(name: str) -> None:
    with ThreadPoolExecutor(2) as pool:
        ours, core = pool.map(lambda who: started(who, name), ("ours", "core"))
    on, why = CARDS[name][2:]
    assert (ours.pop("why"), ours["on"]) == (why, on)
    assert ours["patcher"] == ("ModelPatcherDynamic" if on else "ModelPatcher")
    assert ours == {key: value for key, value in core.items() if key != "why"}


@pytest.mark.long
def test_as_main_py():
    compare("reserved")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CARDS if name != "reserved"])
def test_as_main_py_on_every_card(name):
    compare(name)


OLD = """
if enables_dynamic_vram() and comfy.model_management.is_nvidia() and not comfy.model_management.is_wsl():
    pass
os.environ['OCL_SET_SVM_SIZE'] = '262144'
"""
NEW = """
if os.name == "nt":
    os.environ["CUDA_VISIBLE_DEVICES"] = "0"
os.environ['OCL_SET_SVM_SIZE'] = '4194304'


def dynamic_vram_supported():
    return comfy.model_management.is_nvidia() or comfy.model_management.is_amd()
"""


@pytest.fixture(params=[OLD, NEW], ids=["as up to 0.30.0", "as newer"])
def core(request, monkeypatch):
    """main.py in both forms. Whether it is the newer one."""
    monkeypatch.setattr(main_py, "text", lambda: request.param)
    return request.param is NEW


@pytest.mark.parametrize(("nvidia", "amd", "wsl", "older", "newer"), [
    (True, False, False, "", ""),
    (True, False, True, "this is WSL", ""),
    (False, True, False, "the card is not NVIDIA's", ""),
    (False, False, False, "the card is not NVIDIA's", ELSE),
])  # fmt: skip
def test_dynamic_vram_is_tried_where_the_running_comfyui_uses_it(monkeypatch, core, nvidia, amd, wsl, older, newer):
    import comfy.cli_args
    import comfy.model_management as management

    for name, value in (("is_nvidia", nvidia), ("is_amd", amd), ("is_wsl", wsl)):
        monkeypatch.setattr(management, name, lambda value=value: value)
    monkeypatch.setattr(management, "torch_version_numeric", (2, 11))
    monkeypatch.setattr(comfy.cli_args, "args", Namespace(cpu=False, enable_dynamic_vram=False))
    monkeypatch.setattr(comfy.cli_args, "enables_dynamic_vram", lambda: True)
    assert starting._why_not_tried() == (newer if core else older)
    assert main_py.svm_size() == ("4194304" if core else "262144")


def visible(monkeypatch, system: str, environment: dict, **options) -> str | None:
    """The cards that torch would see."""
    monkeypatch.setattr(starting, "os", SimpleNamespace(name=system, environ=environment))
    chosen = {"cuda_device": None, "default_device": None, "oneapi_device_selector": None, "deterministic": False}
    starting._name_devices(Namespace(**(chosen | options)))
    return environment.get("CUDA_VISIBLE_DEVICES")


def test_the_cards_are_those_that_the_running_comfyui_would_show(monkeypatch, core):
    assert visible(monkeypatch, "posix", {}) is None
    assert visible(monkeypatch, "nt", {}) == ("0" if core else None)
    assert visible(monkeypatch, "nt", {"CUDA_VISIBLE_DEVICES": "1"}) == "1"
    assert visible(monkeypatch, "nt", {"WORLD_SIZE": "2"}) is None  # each process of a launcher chooses its own
    assert visible(monkeypatch, "nt", {}, cuda_device="0,1") == "0,1"
    assert visible(monkeypatch, "nt", {}, default_device=1).startswith("1,0,2")
    for system in ("posix", "nt"):  # all that are visible now, in any ComfyUI
        assert visible(monkeypatch, system, {}, cuda_device="all") is None
        assert visible(monkeypatch, system, {}, cuda_device="all", default_device=1) is None
        assert visible(monkeypatch, system, {"CUDA_VISIBLE_DEVICES": "3"}, cuda_device="all") == "3"
