"""How the seconds of a step change with the number of processes on one computer: ``python -m bench.scaling``.

Weak scaling: each process has ``--images`` of its own in a step, so twice as many processes do twice the work. Strong
scaling: the processes share ``--images``. nano trains a character, each process on one thread, started by ``accelerate
launch``. For each run the median step is printed, and what it consists of: computing the own share, and all else
(waiting for the slowest, adding up gradients, the optimizer).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import torch

from bench.nano.host import ROOT, load_flux2, use_comfyui

RESULTS = ROOT / "bench" / "results" / "scaling_cpu.json"
WARM = 3  # steps that are not counted


def work(folder: Path, batch: int, steps: int) -> None:
    """One process of several. The first one prints JSON: the seconds of each step, and those of its own share."""
    from flux2_train.train import processes

    with processes.launched() as accelerator, torch.inference_mode():
        use_comfyui()
        from bench.encoding import encoded
        from flux2_train.data.folder import read_folder
        from flux2_train.events import Completed
        from flux2_train.flavours import FLAVOURS
        from flux2_train.runs.prepare import new_trainer
        from flux2_train.settings.dataset_folder import DatasetSettings
        from flux2_train.settings.training import TrainingSettings

        model, clip, vae = load_flux2()
        dataset = read_folder(DatasetSettings(folder, resolution=FLAVOURS["nano"].resolution))
        config = TrainingSettings(steps=steps + WARM, batch=batch, rank=16, validation_items=0)
        trainer, own = new_trainer(model, *encoded(dataset, clip, vae), config, accelerator), []
        with closing(trainer.run() if trainer.is_main else trainer._run()) as run:
            for event in run:
                if isinstance(event, Completed):
                    own.append(trainer.pace.took)
        if trainer.is_main:
            print(json.dumps({"steps": trainer.history.seconds[WARM:], "own": own[WARM:]}))
    processes.leave()


def launch(count: int, folder: Path, batch: int, steps: int) -> dict[str, float]:
    """The median seconds of a step and of the first process's own share, of a run in so many processes."""
    several = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(count),
               "--num_cpu_threads_per_process", "1"] if count > 1 else []  # fmt: skip
    command = [sys.executable, *several, "-m", "bench.scaling", "--work", str(folder), "--images", str(batch),
               "--steps", str(steps)]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-4000:])
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def measure(counts: Sequence[int], images: int, steps: int, repeats: int) -> dict[str, dict]:
    """For each kind and number of processes the medians over ``repeats`` runs, which take turns."""
    from bench.nano.world.concepts import write_dataset

    cases = {f"weak {count}": (count, images) for count in counts}
    cases |= {f"strong {count}": (count, images // count) for count in counts}
    runs: dict[tuple[int, int], list[dict[str, float]]] = {case: [] for case in cases.values()}  # both begin with one
    with tempfile.TemporaryDirectory() as folder:
        write_dataset("character", Path(folder), 4 * images)
        for _ in range(repeats):
            for count, batch in runs:
                runs[count, batch].append(launch(count, Path(folder), batch, steps))
    return {name: {"images in a step": count * batch, **_medians(runs[count, batch])}
            for name, (count, batch) in cases.items()}  # fmt: skip


def _medians(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def line(name: str, found: dict, alone: dict) -> str:
    """A sentence that compares a case with one process, and says what its step consists of."""
    rate = found["images in a step"] / found["steps"] / (alone["images in a step"] / alone["steps"])
    each = alone["own"] * found["images in a step"] / alone["images in a step"] / int(name.split()[1])
    return (
        f"{name}: {found['steps']:.3f} s a step of {found['images in a step']} images, {rate:.2f} times the images per "
        f"second of one process; its own share takes {found['own']:.3f} s ({found['own'] / each:.2f} times what the "
        f"same images take alone), all else {found['steps'] - found['own']:.3f} s"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(prog="python -m bench.scaling", description=__doc__)
    options.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    options.add_argument("--images", type=int, default=4)
    options.add_argument("--steps", type=int, default=20)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--out", type=Path, default=RESULTS)
    options.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    asked = options.parse_args(arguments)
    if asked.work:
        return work(asked.work, asked.images, asked.steps)
    from bench.speed.__main__ import machine

    found = measure(asked.processes, asked.images, asked.steps, asked.repeats)
    for name, each in found.items():
        print(line(name, each, found[f"{name.split()[0]} {asked.processes[0]}"]), flush=True)
    asked.out.write_text(json.dumps({"machine": machine(1), **found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
