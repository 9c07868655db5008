"""python -m bench.learning QUESTION ...: what nano learns with each setting, over several seeds. See --help."""

from __future__ import annotations

import argparse
import json
import os
import platform
from dataclasses import asdict
from pathlib import Path

import torch

from flux2_train.atomic import write_text

from .cell import Protocol, base_scores, measure
from .questions import QUESTIONS, STANDARD
from .table import plot, table

RESULTS = Path(__file__).resolve().parents[1] / "results"


def main(arguments: list[str] | None = None) -> None:
    """Measure the questions' cells that are missing, and print a table for each."""
    options = parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    protocol = Protocol(options.concept, options.steps, options.prompts)
    for question in options.questions or STANDARD:
        path = options.out / f"learning_{question}.json"
        result = answered(question, protocol, options.seeds, path, options.only)
        print(f"\n{table(result)}\n{path}", flush=True)
        plot(result, path.with_suffix(".png"))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="python -m bench.learning", description=f"standard set: {', '.join(STANDARD)}")
    found.add_argument("questions", nargs="*", choices=[*QUESTIONS, []], help="the standard set if none is named")
    found.add_argument("--seeds", type=int, default=5)
    found.add_argument("--concept", default=Protocol.concept)
    found.add_argument("--steps", type=int, default=0, help="0 takes the demo's")
    found.add_argument("--prompts", type=int, default=Protocol.prompts, help="painted for each score")
    found.add_argument("--only", nargs="+", default=[], metavar="SETTING", help="of the question's settings, these")
    found.add_argument("--threads", type=int, default=2)
    found.add_argument("--out", type=Path, default=RESULTS)
    return found


def answered(question: str, protocol: Protocol, seeds: int, path: Path, only: list[str]) -> dict:
    """The result of a question. What its file holds already is not measured again; each new cell is written at once.

    Seeds are the outer loop, so that what is there early compares all settings. Raises SystemExit if the file was made
    by another protocol.
    """
    result = _begun(question, protocol, path)
    done = {(cell["setting"], cell["seed"]) for cell in result["cells"]}
    for seed in range(seeds):
        for setting, changes in QUESTIONS[question].items():
            if (setting, seed) in done or (only and setting not in only):
                continue
            found = asdict(measure(changes, seed, protocol))
            result["cells"].append({"setting": setting, "seed": seed, "changes": list(changes), **found})
            write_text(path, json.dumps(result, indent=1) + "\n")
            print(f"{question}, {setting}, seed {seed}: {found}", flush=True)
    return result


def _begun(question: str, protocol: Protocol, path: Path) -> dict:
    if path.exists():
        result = json.loads(path.read_text())
        if result["protocol"] != asdict(protocol):
            raise SystemExit(f"{path} was measured as {result['protocol']}: name another folder with --out.")
        return result
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "torch": torch.__version__}
    path.parent.mkdir(parents=True, exist_ok=True)
    base = base_scores(protocol)
    return {"question": question, "protocol": asdict(protocol), "machine": machine, "base": base, "cells": []}


if __name__ == "__main__":
    main()
