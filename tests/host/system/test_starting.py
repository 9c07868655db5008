"""ComfyUI's memory management is started as its own main.py does it, statement by statement, on any card."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import ROOT

from flux2_train.host.system.bootstrap import find_comfyui

pytestmark = pytest.mark.skipif(
    "comfy_aimdo.control.init_devices(" not in (find_comfyui() / "main.py").read_text(),
    reason="this ComfyUI starts no comfy-aimdo, or in another way",
)
CARDS = {  # the card and ComfyUI's options: whether dynamic VRAM is on, and why not
    "one": ({}, [], True, ""),
    "two": ({"cards": 2}, [], True, ""),
    "reserved": ({}, ["--reserve-vram", "2", "--vram-headroom", "0.5", "--disable-nvml-pressure"], True, ""),
    "second": ({}, ["--cuda-device", "1", "--deterministic"], True, ""),
    "default": ({}, ["--default-device", "2", "--disable-cuda-malloc"], True, ""),
    "old protocol": ({"protocol": 1}, ["--reserve-vram", "1"], True, ""),
    "older protocol": ({"protocol": 2}, ["--reserve-vram", "1"], True, ""),
    "wsl": ({"wsl": True}, [], False, "this is WSL"),
    "amd": ({"nvidia": False}, [], False, "the card is not NVIDIA's"),
    "amd, forced": ({"nvidia": False}, ["--enable-dynamic-vram"], True, ""),
    "old torch": ({"torch": [2, 7]}, [], False, "torch is older than 2.8"),
    "asked not to": ({}, ["--disable-dynamic-vram"], False, "ComfyUI's command line turns it off"),
    "highvram": ({}, ["--highvram"], False, "ComfyUI's command line turns it off"),
    "broken": ({"works": False}, [], False, "comfy-aimdo does not work with this card or driver"),
}


def started(who: str, name: str) -> dict:
    card, options, *_ = CARDS[name]
    command = [sys.executable, "tests/processes/start_probe.py", who, json.dumps(card), *options]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def environment() -> dict:
    import os

    left_out = ("PYTORCH_CUDA_ALLOC_CONF", "CUBLAS_WORKSPACE_CONFIG", "CUDA_VISIBLE_DEVICES", "WORLD_SIZE")
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    return {**kept, "PYTHONPATH": str(ROOT)}


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
