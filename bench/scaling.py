"""How the seconds of a step change with the number of processes on one computer: ``python -m bench.scaling``.

Weak scaling: each process has ``--images`` of its own in a step, so twice as many processes do twice the work. Strong
scaling: the processes share ``--images``. The model has a flavour's shapes and random weights. Processes are started by
``accelerate launch``: on the CPU each on one thread, on CUDA each on a card of its own. For each run the median step is
printed, and what it consists of: computing the own share, and all else (waiting for the slowest, adding up gradients,
the optimizer).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
WARM = 3  # steps that are not counted
CPU, CUDA = "cpu", "cuda"


@dataclass(frozen=True)
class Problem:
    """What every process trains on: a ``device``'s kind, a flavour in a stored precision, square images of ``pixels``.

    ``comfyui`` are ComfyUI's own options, as one text.
    """

    device: str = CPU
    flavour: str = "nano"
    precision: str = "bf16"
    pixels: int = 128
    steps: int = 20
    comfyui: str = ""

    def words(self) -> list[str]:
        """The problem as arguments of this module's command."""
        return [f"--{name}={value}" for name, value in vars(self).items()]  # a value may itself begin with a dash


def work(problem: Problem, images: int) -> None:
    """One process of several. The first one prints JSON: the seconds of each step, and those of its own share."""
    import shlex

    from bench.gpu import packed

    packed.complete(ROOT)
    from flux2_train.train import processes

    with processes.launched() as accelerator:
        from flux2_train.host.system.bootstrap import import_comfyui

        import_comfyui(*shlex.split(problem.comfyui), *(["--cpu"] if problem.device == CPU else []))
        found = _trained(problem, images, accelerator)
        if accelerator.is_main_process:
            print(json.dumps(found))
    processes.leave()


def _trained(problem: Problem, images: int, accelerator) -> dict[str, list[float]]:
    """Seconds of each step of a run, and those of this process's own share."""
    import torch

    from bench.gpu import models
    from flux2_train.events import Completed
    from flux2_train.flavours import FLAVOURS
    from flux2_train.runs.prepare import new_trainer
    from flux2_train.settings.training import TrainingSettings

    flavour = FLAVOURS[problem.flavour]
    model = models.flavour_model(problem.flavour, problem.precision)
    caches = models.caches(problem.pixels, flavour.context, images=2 * images, tokens=flavour.text_length)
    config = TrainingSettings(steps=problem.steps + WARM, batch=images, rank=16, validation_items=0)
    with torch.inference_mode():
        trainer, own = new_trainer(model, *caches, config, accelerator), []
        with closing(trainer.run() if trainer.is_main else trainer._run()) as run:
            for event in run:
                if isinstance(event, Completed):
                    own.append(trainer.pace.took)
    steps = trainer.history.seconds[WARM:]
    # A process that is alone does not wait for its card at the end of its share.
    return {"steps": steps, "own": own[WARM:] if accelerator.num_processes > 1 or problem.device == CPU else steps}


def launch(problem: Problem, count: int, images: int) -> dict[str, float]:
    """The median seconds of a step and of the first process's own share, of a run in so many processes.

    Raises RuntimeError with the end of their output if they fail.
    """
    several = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(count),
               "--num_cpu_threads_per_process", "1"] if count > 1 else []  # fmt: skip
    command = [sys.executable, *several, "-m", "bench.scaling", "--work", "--images", str(images), *problem.words()]
    hidden = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} if problem.device == CPU else {}
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **hidden}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-4000:])
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def measure(problem: Problem, counts: Sequence[int], images: int, repeats: int) -> dict[str, dict]:
    """For each kind and number of processes the medians over ``repeats`` runs, which take turns."""
    cases = {f"weak {count}": (count, images) for count in counts}
    cases |= {f"strong {count}": (count, images // count) for count in counts}
    runs: dict[tuple[int, int], list[dict[str, float]]] = {case: [] for case in cases.values()}  # both begin with one
    for _ in range(repeats):
        for count, each in runs:
            runs[count, each].append(launch(problem, count, each))
    return {name: {"images in a step": count * each, **_medians(runs[count, each])}
            for name, (count, each) in cases.items()}  # fmt: skip


def _medians(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def lines(found: dict[str, dict]) -> list[str]:
    """A sentence for each case of ``measure``."""
    first = next(iter(found)).split()[1]
    return [line(name, each, found[f"{name.split()[0]} {first}"]) for name, each in found.items()]


def line(name: str, found: dict, alone: dict) -> str:
    """A sentence that compares a case with one process, and says what its step consists of."""
    rate = found["images in a step"] / found["steps"] / (alone["images in a step"] / alone["steps"])
    each = alone["own"] * found["images in a step"] / alone["images in a step"] / int(name.split()[1])
    return (
        f"{name}: {found['steps']:.3f} s a step of {found['images in a step']} images, {rate:.2f} times the images per "
        f"second of one process; its own share takes {found['own']:.3f} s ({found['own'] / each:.2f} times what the "
        f"same images take alone), all else {found['steps'] - found['own']:.3f} s"
    )


def doubled(most: int) -> list[int]:
    """1, 2, 4 and so on, ``most`` at most."""
    return [2**power for power in range(most.bit_length())]


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(prog="python -m bench.scaling", description=__doc__)
    options.add_argument("--processes", type=int, nargs="+", help="default: 1, 2; on CUDA 1, 2, 4 ... of all cards")
    options.add_argument("--images", type=int, help="default: 4; on CUDA the most processes, so that each has one")
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--out", type=Path, help="default: bench/results/scaling_DEVICE.json")
    options.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options.add_argument("--device", choices=(CPU, CUDA), default=CPU)
    for name in ("flavour", "precision", "pixels", "steps", "comfyui"):
        value = getattr(Problem, name)
        options.add_argument(f"--{name}", type=type(value), default=value)
    asked = options.parse_args(arguments)
    problem = Problem(asked.device, asked.flavour, asked.precision, asked.pixels, asked.steps, asked.comfyui)
    if asked.work:
        return work(problem, asked.images)
    import torch

    from bench.speed.__main__ import machine

    counts = asked.processes or (doubled(torch.cuda.device_count()) if asked.device == CUDA else [1, 2])
    found = measure(problem, counts, asked.images or (max(counts) if asked.device == CUDA else 4), asked.repeats)
    print("\n".join(lines(found)), flush=True)
    target = asked.out or RESULTS / f"scaling_{asked.device}.json"
    target.write_text(json.dumps({"machine": machine(1), **found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
