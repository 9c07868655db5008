"""Trains the tiny FLUX.2 in a process of its own: freely, then with half the address space that this took.

Prints JSON: what was told, whether both LoRAs are the same bits, and the checkpointing at the end. Linux only.
"""

import json
import resource
import sys
from contextlib import closing
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

from flux2_train.host.system.bootstrap import import_comfyui  # noqa: E402

import_comfyui()

import torch  # noqa: E402
from support import tiny_caches, tiny_flux2  # noqa: E402

from flux2_train import events  # noqa: E402
from flux2_train.runs.prepare import new_trainer  # noqa: E402
from flux2_train.settings.training import TrainingSettings  # noqa: E402
from flux2_train.train.trainer import Trainer  # noqa: E402

CONFIG = TrainingSettings(steps=1, rank=2, learning_rate=2e-3, validation_items=0, checkpointing=False)


def address_space(kind: str = "VmSize") -> int:
    """Bytes of VmSize (now) or VmPeak (at most so far)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(kind))


def run(trainer: Trainer) -> list[str]:
    with torch.inference_mode(), closing(trainer.run()) as received:
        return [event.text for event in received if isinstance(event, events.Warned)]


model, caches = tiny_flux2(single=10), tiny_caches(items=1, resolution=768)
free = new_trainer(model, *caches, CONFIG)
run(free)
took = address_space("VmPeak") - address_space()
limited = new_trainer(model, *caches, CONFIG)
resource.setrlimit(resource.RLIMIT_AS, (address_space() + took // 2, resource.RLIM_INFINITY))
received = run(limited)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
masters = [{name: p.detach() for name, p in t.adapters.masters().items()} for t in (free, limited)]
same = all(torch.equal(p, masters[1][name]) for name, p in masters[0].items())
print(json.dumps({"told": received, "same": same, "layout": limited.memory.plan.layout.checkpointing}))
