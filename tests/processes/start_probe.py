"""What ComfyUI's main.py does about memory on a card, or what we do in its place, written down as JSON.

Arguments: 'core' runs main.py's own statements, 'ours' ``host.starting``; the card, as JSON; ComfyUI's options.
comfy-aimdo needs a card: its three functions are replaced by ones that note their arguments.
"""

import ast
import json
import os
import sys
from pathlib import Path

from flux2_train.host.system import bootstrap, starting

who, card, *options = sys.argv[1:]
card = json.loads(card)
noted = []


def statements(path: Path, wanted) -> list[ast.stmt]:
    return [node for node in ast.parse(path.read_text()).body if wanted(ast.unparse(node))]


def run(nodes: list[ast.stmt], names: dict) -> None:
    exec(compile(ast.Module(nodes, []), "main.py", "exec"), names)


starting.may_have_card = lambda: False  # the command line only, to begin with
comfyui = bootstrap.prepare(*options)
starting.may_have_card = lambda: True

import comfy_aimdo.control as control  # noqa: E402
from comfy.cli_args import args, enables_dynamic_vram  # noqa: E402


def init(**arguments):
    noted.append(["init", {"nvml_pressure": True, **arguments}])
    if card.get("protocol") and len(arguments) > card["protocol"] - 1:
        noted.pop()
        raise TypeError


def init_devices(devices):
    devices = list(devices)
    if card.get("protocol") == 1 and isinstance(devices[0], tuple):
        raise TypeError
    noted.append(["init_devices", devices])
    return card.get("works", True)


control.init, control.init_devices = init, init_devices
for name in ("warning", "info", "error"):
    setattr(control, f"set_log_{name}", lambda: None)
before = dict(os.environ)
if who == "ours":
    starting.before_torch()
else:
    logging = __import__("logging")
    names = {"__name__": "__main__", "os": os, "args": args, "comfy_aimdo": sys.modules["comfy_aimdo"],
             "enables_dynamic_vram": enables_dynamic_vram, "logging": logging}  # fmt: skip
    run(statements(comfyui / "main.py", lambda text: text.startswith("if enables_dynamic_vram()")
                   or text.startswith("if os.name == 'nt'") or "CUDA_VISIBLE_DEVICES" in text), names)  # fmt: skip
noted.append(["torch before its allocator was named", "torch" in sys.modules])
OTHER = ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK")  # newer ones set these in the same statement
environment = {name: value for name, value in os.environ.items() if before.get(name) != value and name not in OTHER}

args.cpu = True  # there is none here: ComfyUI's modules are imported for the processor
import comfy.memory_management  # noqa: E402
import comfy.model_management as management  # noqa: E402
import comfy.model_patcher  # noqa: E402
import torch  # noqa: E402

args.cpu = False
management.is_nvidia, management.is_wsl = lambda: card.get("nvidia", True), lambda: card.get("wsl", False)
management.is_amd, management.rocm_version = lambda: "rocm" in card, tuple(card.get("rocm", ()))
management.torch_version_numeric = tuple(card.get("torch", (2, 11)))
management.get_all_torch_devices = lambda: [torch.device("cuda", n) for n in range(card.get("cards", 1))]
if who == "ours":
    starting.after_import()
else:
    names |= {"comfy": sys.modules["comfy"], "console_log_level": "INFO"}
    run(statements(comfyui / "main.py", lambda text: text.startswith(
        ("def dynamic_vram_supported", "if args.enable_dynamic_vram or"))), names)  # fmt: skip
print(json.dumps({
    "noted": noted, "environment": environment, "on": bool(comfy.memory_management.aimdo_enabled),
    "patcher": comfy.model_patcher.CoreModelPatcher.__name__,
    "why": starting.dynamic_vram()[1] if who == "ours" else "",
}))  # fmt: skip
