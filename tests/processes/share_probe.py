"""One process of several that ``accelerate launch`` started: measures steps on a base that all of them share.

Arguments: a file of weights, which process 0 writes, the number of single blocks, and the file to write (with the
process's number behind it): bytes of the base, the rise of this process's own memory, what the plan says of it, and the
bytes that were received in each step.
"""

import ctypes
import gc
import json
import sys
import threading
import time
from pathlib import Path

from flux2_train.host.system.bootstrap import import_comfyui
from flux2_train.train import processes

weights, single, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
STEPS = 3
SEE = 0.002  # seconds between two looks at the memory


def own_memory() -> int:
    """Bytes of this process's memory that belong to no file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


class Peak:
    """The most of ``own_memory`` inside the block, by looking often."""

    def __enter__(self):
        self.most, self.over = own_memory(), threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()
        return self

    def _look(self):
        while not self.over.is_set():
            self.most = max(self.most, own_memory())
            time.sleep(SEE)

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()


with processes.launched() as accelerator:
    import_comfyui()
    import comfy.sd
    import torch

    from bench.speed.problem import Problem, write_weights
    from flux2_train.adapters import targets
    from flux2_train.adapters.live import Adapters, Site
    from flux2_train.host import sizes
    from flux2_train.host.borrowed.borrow import Borrowed, borrow_as, linears, training_mode
    from flux2_train.host.borrowed.velocity import Condition, velocity
    from flux2_train.planning.estimate import estimate
    from flux2_train.planning.layout import Layout
    from flux2_train.planning.work import Machine, Work
    from flux2_train.settings.adapter import AdapterSettings
    from flux2_train.streaming.gathering import Gathered

    torch.set_num_threads(1)
    problem = Problem(weights, hidden=1152, double=2, single=single, context=256, tokens=49, dtype="bfloat16")
    with processes.main_first(accelerator):
        if accelerator.is_main_process:
            write_weights(problem)
    with torch.inference_mode():
        model = comfy.sd.load_diffusion_model(weights)
    latent, text = problem.inputs()
    layout = Layout(streamed=tuple(range(2 + single)))
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before, received = own_memory(), []
    with Peak() as peak:
        layers = linears(model)
        sites = {n: Site(layers[n].in_features, layers[n].out_features, 16, 16) for n in targets.select(layers)}
        with training_mode():
            adapters = Adapters(sites, AdapterSettings(), seed=0)
            optimizer = torch.optim.AdamW(adapters.trainable())
        how = Borrowed(layout, Gathered(model.load_device))
        with torch.inference_mode(), borrow_as(model, adapters.deltas(), how) as borrowed:
            for _ in range(STEPS):
                with training_mode():
                    velocity(
                        borrowed, latent.clone(), torch.tensor([0.5]), [Condition(text)]
                    ).square().mean().backward()
                    optimizer.step()
                    optimizer.zero_grad()
                received.append(how.via.received)
            kept = sum(group.own.nbytes for group in how.streamed.ring.groups)
    parameters = {name: sum(p.numel() for p in adapters.of_layer(name)) for name in adapters.names}
    sites = {name: (adapters.kept(name), parameters[name]) for name in adapters.names}
    work = Work(sizes.weights_of(model), sites, problem.tokens, size=sizes.number_size(model),
                shares=accelerator.num_processes)  # fmt: skip
    plan = estimate(work, layout, Machine(0))
    mapped = work.weights.total - sum(work.weights.block_bytes())  # what is not shared stays in the file
    Path(f"{out}.{accelerator.process_index}").write_text(json.dumps({
        "base": work.weights.total, "rise": peak.most - before, "planned": plan.peak - mapped, "kept": kept,
        "weights": plan.parts["weights"] - mapped, "received": received, "traffic": plan.traffic,
    }))  # fmt: skip
processes.leave()
