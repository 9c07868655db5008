"""What preservation costs: time and memory of a step over a plain one, in sequence and together.

``python -m bench.preservation`` trains on a FLUX.2 transformer with random weights, one step of each kind in turn, with
gradient checkpointing off and on, and writes bench/results/preservation_DEVICE.json. ``--help`` lists the sizes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import torch

from bench import memory
from bench.speed.__main__ import machine
from bench.speed.contenders import comfyui_model
from bench.speed.problem import Problem, write_weights
from bench.speed.ratios import ratio

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("plain", "in sequence", "together")
HEAP = "MALLOC_MMAP_THRESHOLD_"  # glibc: freed memory goes back at once, so that peaks can be told apart


def caches(problem: Problem):
    """Embeds and latents of one image with a trigger."""
    from flux2_train.data.cache import EmbedCache, LatentCache
    from flux2_train.data.crops import Crop
    from flux2_train.data.dataset import Dataset, Item, Source, View

    latent, text = problem.inputs()
    height, width = (16 * side for side in latent.shape[2:])
    view = View(Path("image.png"), "", Crop((0, 0, width, height), (width, height)))
    item = Item(view, ("a vorn creature",), ("a creature",))
    dataset = Dataset((item,), (Source(Path(), trigger="vorn", class_word="creature"),), width)
    return EmbedCache(dataset, dict.fromkeys(dataset.texts(), text)), LatentCache(dataset, {view: latent})


def trainer_of(kind: str, model, data, problem: Problem):
    """A run of one step."""
    from flux2_train.runs.prepare import new_trainer
    from flux2_train.settings.objective import PreservationSettings
    from flux2_train.settings.training import TrainingSettings

    preserve = PreservationSettings(every=1, together=kind == "together")
    weight = 0.0 if kind == "plain" else 1.0
    config = TrainingSettings(rank=problem.rank, steps=1, validation_items=0, checkpointing=problem.checkpointing,
                         preservation=weight, preservation_options=preserve)  # fmt: skip
    return new_trainer(model, *data, config)


def measured(trainer) -> tuple[float, float]:
    """(seconds, MB that the step needed above what was there before) of a run's one step."""
    from flux2_train.events import Stepped

    memory.reset_peak(trainer.device)
    before = memory.in_use(trainer.device)
    with torch.inference_mode(), closing(trainer.run()) as run:
        (seconds,) = [event.seconds for event in run if isinstance(event, Stepped)]
    return seconds, (memory.peak(trainer.device) - before) / 2**20


def compare(model, data, problem: Problem, rounds: int) -> dict:
    """Medians, and ratios to the plain step; one round before is not counted."""
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    for number in range(rounds + 1):
        for kind in KINDS if number % 2 else reversed(KINDS):
            figures = measured(trainer_of(kind, model, data, problem))
            if number:
                found[kind].append(figures)
    plain_seconds, plain_mb = zip(*found["plain"], strict=True)
    rows = {}
    for kind, figures in found.items():
        seconds, megabytes = zip(*figures, strict=True)
        rows[kind] = {
            "seconds": statistics.median(seconds), "step_mb": statistics.median(megabytes),
            "time_ratio": asdict(ratio(seconds, plain_seconds)),
            "memory_ratio": statistics.median(megabytes) / statistics.median(plain_mb), "all_seconds": seconds,
        }  # fmt: skip
        times = rows[kind]["time_ratio"]
        print(f"{kind:12} {rows[kind]['seconds']:7.3f} s {rows[kind]['step_mb']:7.0f} MB   time {times['median']:.2f} "
              f"[{times['low']:.2f}, {times['high']:.2f}], memory {rows[kind]['memory_ratio']:.2f}")  # fmt: skip
    return rows


def main() -> None:
    """Measure, print, and write the result with the machine it was measured on."""
    default = Problem("", hidden=768, tokens=256)
    parser = argparse.ArgumentParser(prog="python -m bench.preservation", description=__doc__)
    for name in ("hidden", "double", "single", "context", "tokens", "rank"):
        parser.add_argument(f"--{name}", type=int, default=getattr(default, name))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = vars(parser.parse_args())
    if HEAP not in os.environ:
        os.execve(
            sys.executable, [sys.executable, "-m", "bench.preservation", *sys.argv[1:]], {**os.environ, HEAP: "65536"}
        )
    rounds, threads = options.pop("rounds"), options.pop("threads")
    torch.set_num_threads(threads)
    dtype = "float32" if options["device"] == "cpu" else "bfloat16"
    result = {"machine": machine(threads), "modes": {}}
    with tempfile.TemporaryDirectory() as folder:
        problem = Problem(f"{folder}/weights.safetensors", dtype=dtype, **options)
        write_weights(problem)
        model, data = comfyui_model(problem), caches(problem)
        result["problem"] = {name: value for name, value in asdict(problem).items() if name != "weights"}
        for checkpointing in (False, True):
            mode = f"checkpointing {'on' if checkpointing else 'off'}"
            print(f"\n{mode}")
            this = Problem(**{**asdict(problem), "checkpointing": checkpointing})
            result["modes"][mode] = compare(model, data, this, rounds)
    out = ROOT / "bench" / "results" / f"preservation_{options['device']}.json"
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\n{out}")


if __name__ == "__main__":
    main()
