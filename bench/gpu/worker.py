"""The process that measures: it says what it runs on, then answers each line of stdin with one row, in JSON."""

from __future__ import annotations

import gc
import json
import os
import queue
import shlex
import signal
import sys
import threading
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LONGEST = 600  # characters of an error


def main(device: str, options: str) -> None:
    """Answer until stdin ends, and then end, also in the middle of a row. Every error of a row is its answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    from bench.gpu import packed

    replaced = packed.complete(ROOT)
    from flux2_train.host.system.bootstrap import import_comfyui

    import_comfyui(*shlex.split(options), *(["--cpu"] if device == "cpu" else []))
    answers.write(json.dumps({**facts(), "replaced": replaced, "options": options}) + "\n")
    requests: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read, args=(requests,), daemon=True).start()
    while True:
        answers.write(json.dumps(measured(json.loads(requests.get()))) + "\n")


def _read(requests: queue.Queue[str]) -> None:
    for line in sys.stdin:
        requests.put(line)
    os._exit(0)  # also out of what hangs in a driver


def facts() -> dict:
    """What rows are measured on, gathered before any of them."""
    from flux2_train.host.system import facts

    return {"versions": facts.versions(), "computer": facts.system(), "card": facts.card(),
            "formats": facts.formats(), "kernels": facts.kernels()}  # fmt: skip


def measured(request: dict) -> dict:
    """The row, or what went wrong. ``unusable`` where the device answers nothing any more."""
    from flux2_train.errors import UserError
    from flux2_train.host.system.facts import scrubbed

    try:
        found = KINDS[request["kind"]](**request["arguments"])
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # ComfyUI's interrupt and pyo3's panics are no Exceptions
        if isinstance(error, UserError) and request["kind"] in ("step", "ablation", "cards"):
            found = {"refused": scrubbed(str(error))}
        else:
            traceback.print_exc()
            text = " ".join(str(error).split())
            found = {"failed": scrubbed(f"{type(error).__name__}: {text}")[:LONGEST]}
    return {**found, **_clean()}


def _clean() -> dict:
    """Give memory back, and say whether the device still works."""
    import comfy.model_management
    import torch

    try:
        gc.collect()
        comfy.model_management.soft_empty_cache()
        device = comfy.model_management.get_torch_device()
        return {} if float(torch.ones(2, device=device).sum()) == 2 else {"unusable": True}
    except Exception:
        return {"unusable": True}


def _rates() -> dict:
    from dataclasses import asdict

    import comfy.model_management

    from flux2_train.host.system import rates

    device = comfy.model_management.get_torch_device()
    found = rates.measure_anew(device)  # which the rows of steps are compared with
    return {**asdict(found), "words": found.words("processor" if device.type == "cpu" else "card")}


def _gradient(**arguments) -> dict:
    from bench.gpu.gradients import gradient

    return gradient(**arguments)


def _run(**arguments) -> dict:
    from bench.gpu.runs import run

    return run(**arguments)


def _step(**arguments) -> dict:
    from bench.gpu.steps import step

    return step(**arguments)


def _ablation(**arguments) -> dict:
    from bench.gpu.ablation import ablation

    return ablation(**arguments)


def _cards(**arguments) -> dict:
    from bench.gpu.several import over_cards

    return over_cards(**arguments)


def _scaling(**arguments) -> dict:
    from bench.gpu.several import scaling

    return scaling(**arguments, comfyui=sys.argv[2])


def _diffusers(**arguments) -> dict:
    from bench.gpu.peers import diffusers

    return diffusers(**arguments)


KINDS = {"rates": _rates, "gradient": _gradient, "run": _run, "step": _step, "ablation": _ablation,
         "cards": _cards, "scaling": _scaling, "diffusers": _diffusers}  # fmt: skip

if __name__ == "__main__":
    main(*sys.argv[1:])
