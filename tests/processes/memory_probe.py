"""Measures one training step's memory in a process of its own: python memory_probe.py WEIGHTS SINGLE_BLOCKS.

Prints a JSON line per mode: bytes of the base weights, the peak of bytes saved for backward, those of adapters and
optimizer (values, gradients, two moments), the rise of resident memory since loading and what the planner says of it,
and how many of the tensors that were saved are base weights.
"""

import ctypes
import gc
import json
import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

from flux2_train.host.system.bootstrap import import_comfyui  # noqa: E402

import_comfyui()

import comfy.sd  # noqa: E402
import torch  # noqa: E402

from bench.speed.problem import Problem, write_weights  # noqa: E402
from flux2_train.adapters import targets  # noqa: E402
from flux2_train.adapters.live import Adapters, Site  # noqa: E402
from flux2_train.host import sizes  # noqa: E402
from flux2_train.host.borrowed.borrow import borrow, linears, training_mode  # noqa: E402
from flux2_train.host.borrowed.velocity import Condition, velocity  # noqa: E402
from flux2_train.planning.estimate import estimate  # noqa: E402
from flux2_train.planning.layout import BLOCKS, OFF, Layout  # noqa: E402
from flux2_train.planning.work import Machine, Work  # noqa: E402
from flux2_train.settings.adapter import AdapterSettings  # noqa: E402


class Saved:
    """Counts the bytes of distinct storages that autograd keeps, now and at most; ``sizes`` and ``places`` of all."""

    def __init__(self):
        self.held, self.now, self.most, self.sizes, self.places = {}, 0, 0, set(), set()

    def hooks(self):
        return torch.autograd.graph.saved_tensors_hooks(lambda tensor: _Kept(self, tensor), lambda kept: kept.tensor)


class _Kept:
    def __init__(self, saved, tensor):
        self.saved, self.tensor, storage = saved, tensor, tensor.untyped_storage()
        self.place, self.size = storage.data_ptr(), storage.nbytes()
        saved.sizes.add(self.size)
        saved.places.add(self.place)
        if self.place not in saved.held:
            saved.now += self.size
        saved.held[self.place] = saved.held.get(self.place, 0) + 1
        saved.most = max(saved.most, saved.now)

    def __del__(self):
        self.saved.held[self.place] -= 1
        if not self.saved.held[self.place]:
            del self.saved.held[self.place]
            self.saved.now -= self.size


def resident(kind: str) -> int:
    """Bytes of VmRSS (now) or VmHWM (most since the last reset)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(kind))


def step(model, problem, checkpointing: bool) -> dict:
    latent, text = problem.inputs()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # or what an earlier step left behind would be used again, and not be seen
    Path("/proc/self/clear_refs").write_text("5")
    before, layers = resident("VmRSS"), linears(model)
    sites = {n: Site(layers[n].in_features, layers[n].out_features, 16, 16) for n in targets.select(layers)}
    saved = Saved()
    with training_mode():
        adapters = Adapters(sites, AdapterSettings(), seed=0)
        optimizer = torch.optim.AdamW(adapters.trainable())
    with borrow(model, adapters.deltas(), checkpointing) as borrowed, training_mode():
        with saved.hooks():
            loss = velocity(borrowed, latent.clone(), torch.tensor([0.5]), [Condition(text)]).square().mean()
        loss.backward()
        optimizer.step()
    base = [p for p in model.model.diffusion_model.parameters() if p.ndim == 2]
    return {
        "checkpointing": checkpointing,
        "base": sum(p.nbytes for p in base),
        "saved": saved.most,
        "adapters_and_optimizer": 4 * sum(p.nbytes for p in adapters.trainable()),
        "rise": resident("VmHWM") - before,
        "planned": planned(model, adapters, problem, checkpointing),
        "base_weights_saved": len({p.untyped_storage().data_ptr() for p in base} & saved.places),
        "sizes_of_base_weights_saved": len({p.nbytes for p in base} & saved.sizes),
    }


def planned(model, adapters, problem, checkpointing: bool) -> int:
    """What the planner says that the step takes beside the weights."""
    parameters = {name: sum(p.numel() for p in adapters.of_layer(name)) for name in adapters.names}
    sites = {name: (adapters.kept(name), parameters[name]) for name in adapters.names}
    work = Work(sizes.weights_of(model), sites, problem.tokens, size=sizes.number_size(model))
    found = estimate(work, Layout(BLOCKS if checkpointing else OFF), Machine(0))
    return found.peak - found.parts["weights"]


def main(weights: str, single: int) -> None:
    # No activation of 512 + 49 tokens is as large as a matrix of this width, so that sizes tell them apart.
    problem = Problem(weights, hidden=1152, double=2, single=single, context=256, tokens=49, dtype="bfloat16")
    small = replace(problem, hidden=256, double=1, single=1)
    step(loaded(small), small, True)  # brings in what the libraries need for a step, or it would count as the step's
    model = loaded(problem)
    for checkpointing in (True, False):
        print(json.dumps(step(model, problem, checkpointing)))


def loaded(problem: Problem):
    write_weights(problem)
    with torch.inference_mode():
        model = comfy.sd.load_diffusion_model(problem.weights)
        sum(p.sum() for p in model.model.diffusion_model.parameters())  # a file that is only mapped is read in now
    return model


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], int(sys.argv[2]))
