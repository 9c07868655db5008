"""python -m bench.speed: our step against others', interleaved, each in its own process. --help lists the sizes.

``adds`` is a step's processor time in units of one sum of two small tensors, measured in the same process after it.
With sizes at which arithmetic costs nothing (--overhead) it is what the step asks of the processor beside a fast card.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import torch

from flux2_train.host.system.facts import comfyui_version, processor

from .contenders import CONTENDERS
from .problem import Problem, write_weights
from .ratios import Ratio, ratio

ROOT = Path(__file__).resolve().parents[2]
OTHERS = [name for name in CONTENDERS if name != "ours"]
SIZES = ("hidden", "double", "single", "context", "tokens", "text", "rank")
OVERHEAD = {"hidden": 128, "double": 8, "single": 24, "context": 64, "tokens": 16, "text": 16, "rank": 4}
MEMORY = ("peak_mb", "own_mb")  # the peak of the process, and the peak minus its memory before it loaded weights
TRAINERS = ["diffusers", "node", "node_bypass"]
OWN = ("compiled", "kept", "compiled_kept")  # of the engine, in other ways than as "ours"


class Worker:
    """A contender's process; it steps when told to."""

    def __init__(self, name: str, problem: Problem, threads: int, log):
        command = [sys.executable, "-m", "bench.speed.worker", name, problem.to_json(), str(threads)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
        self.error = ""

    def step(self) -> dict:
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline() or '{"error": "the process ended; see the log"}')
        self.error = answer.get("error", "")
        return answer

    def stop(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def measure(problem: Problem, names: list[str], pairs: int, warmup: int, threads: int, log) -> dict[str, dict]:
    """By name, seconds, processor time and peak of each of ``pairs`` steps, or the reason why a contender cannot do it.

    They step in turn, the order turned round every time, so that what the machine does meanwhile meets all of them.
    """
    workers = {name: Worker(name, problem, threads, log) for name in names}
    found = {name: {"seconds": [], "adds": [], "peak_mb": [], "own_mb": [], "loss": []} for name in names}
    try:
        for turn in range(warmup + pairs):
            for name in list(workers) if turn % 2 else reversed(workers):
                answer = workers[name].step()
                if "error" in answer:
                    found[name] = answer
                elif turn >= warmup:
                    for key, value in answer.items():
                        found[name][key].append(value)
            workers = {name: worker for name, worker in workers.items() if not worker.error}
    finally:
        for worker in workers.values():
            worker.stop()
    return found


def report(title: str, found: dict[str, dict]) -> dict:
    """Print medians and ratios of one mode; return them."""
    head = f"{'s/step':>8} {'adds':>8} {'peak MB':>8} {'own MB':>8}"
    print(f"\n{title}\n{'':18} {head}   ours / it, median and 95 % interval")
    rows = {}
    for name, values in found.items():
        if "error" in values:
            rows[name] = values
            print(f"{name:18} cannot: {values['error']}")
            continue
        row = rows[name] = {key: statistics.median(values[key]) for key in ("seconds", "adds", *MEMORY)}
        if name != "ours" and "error" not in found["ours"]:
            row |= _ratios(found["ours"], values)
        text = _compared(row) if "time_ratio" in row else ""
        figures = f"{row['seconds']:8.3f} {row['adds']:8.0f} {row['peak_mb']:8.0f} {row['own_mb']:8.0f}"
        print(f"{name:18} {figures}   {text}")
        row |= {"all_seconds": values["seconds"], "all_adds": values["adds"], "losses": values["loss"]}
    measured = {name for name, row in rows.items() if "error" not in row}
    for name in OWN:
        if {name, "diffusers"} <= measured:
            rows[name]["against_diffusers"] = compared = _ratios(found[name], found["diffusers"])
            print(f"{name} / diffusers: {_compared(compared)}")
    return rows


def _ratios(ours: dict, theirs: dict) -> dict:
    """Of seconds, processor time and peaks of pairs of steps."""
    memory, own = (statistics.median(ours[key]) / statistics.median(theirs[key]) for key in MEMORY)
    return {"time_ratio": asdict(ratio(ours["seconds"], theirs["seconds"])),
            "adds_ratio": asdict(ratio(ours["adds"], theirs["adds"])),
            "memory_ratio": memory, "own_ratio": own}  # fmt: skip


def _compared(row: dict) -> str:
    times, adds = Ratio(**row["time_ratio"]), Ratio(**row["adds_ratio"])
    processor = f"{adds.median:.3f} [{adds.low:.3f}, {adds.high:.3f}]"
    memory = f"memory {row['memory_ratio']:.2f}, without libraries {row['own_ratio']:.2f}"
    return f"time {times}, processor {processor}, {memory}"


def machine(threads: int) -> dict:
    """What was measured on: processor or GPU, threads, versions."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "comfyui": comfyui_version(),
        **{name: version(name) for name in ("torch", "diffusers", "peft")},
    }


def parser() -> argparse.ArgumentParser:
    """The command line."""
    default = Problem("")
    root = argparse.ArgumentParser(prog="python -m bench.speed", description=__doc__)
    for name in SIZES:
        root.add_argument(f"--{name}", type=int, help=f"default: {getattr(default, name)}")
    root.add_argument(
        "--overhead", action="store_true",
        help="klein-9b's depth at a size where arithmetic is negligible; sizes that are given still count",
    )  # fmt: skip
    root.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    root.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: float32 on a CPU, else bfloat16")
    root.add_argument("--pairs", type=int, default=9)
    root.add_argument("--warmup", type=int, default=1)
    root.add_argument("--threads", type=int, default=os.cpu_count())
    root.add_argument("--against", nargs="+", choices=OTHERS, default=TRAINERS)
    root.add_argument("--checkpointing", nargs="+", choices=("off", "on"), default=["off", "on"])
    root.add_argument("--out", type=Path, help="default: bench/results/speed_DEVICE.json")
    return root


def main() -> None:
    """Measure, print, and write the result with the machine it was measured on."""
    options = parser().parse_args()
    given = {n: getattr(options, n) for n in SIZES if getattr(options, n) is not None}
    sizes = (OVERHEAD if options.overhead else {}) | given
    dtype = options.dtype or ("float32" if options.device == "cpu" else "bfloat16")
    out = options.out or ROOT / "bench" / "results" / f"speed_{options.device}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    result = {"machine": machine(options.threads), "modes": {}}
    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "log", "w+") as log:
        problem = Problem(f"{folder}/weights.safetensors", dtype=dtype, device=options.device, **sizes)
        write_weights(problem)
        result["problem"] = {name: value for name, value in asdict(problem).items() if name != "weights"}
        for mode in options.checkpointing:
            names = ["ours", *options.against]
            this = replace(problem, checkpointing=mode == "on")
            found = measure(this, names, options.pairs, options.warmup, options.threads, log)
            result["modes"][f"checkpointing {mode}"] = report(f"checkpointing {mode}", found)
            out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\n{out}")


if __name__ == "__main__":
    main()
