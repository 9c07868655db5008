"""python -m bench.learning QUESTION ...: what nano learns with each setting, over several seeds. See --help."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path

import torch

from flux2_train.atomic import write_text
from flux2_train.host.system.facts import processor

from . import order
from .cell import Protocol, base_scores
from .cells import ALL, Cell, measured
from .questions import QUESTIONS, STANDARD

RESULTS = Path(__file__).resolve().parents[1] / "results"
ORDER = "selectivity"  # the question that trains nothing


def main(arguments: list[str] | None = None) -> None:
    """Measure the questions' cells that are missing, and print a table for each."""
    options = parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    protocol = Protocol(options.concept, options.steps, options.prompts)
    for name in options.questions or STANDARD:
        path = options.out / f"learning_{name}.json"
        if name == ORDER:
            result, shown = order.order(options.out), order
            write_text(path, json.dumps(result, indent=1) + "\n")
        else:
            result = answered(name, protocol, options.seeds, path, options.only, options.processes)
            shown = ALL[name].shown
        print(f"\n{shown.table(result)}\n{path}", flush=True)
        shown.plot(result, path.with_suffix(".png"))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="python -m bench.learning", description=f"standard set: {', '.join(STANDARD)}")
    found.add_argument("questions", nargs="*", choices=[*ALL, ORDER, []], help="the standard set if none is named")
    found.add_argument("--seeds", type=int, default=5)
    found.add_argument("--concept", default=Protocol.concept)
    found.add_argument("--steps", type=int, default=0, help="0 takes the demo's")
    found.add_argument("--prompts", type=int, default=Protocol.prompts, help="painted for each score")
    found.add_argument("--only", nargs="+", default=[], metavar="SETTING", help="of the question's settings, these")
    found.add_argument("--threads", type=int, default=2, help="of all processes together")
    found.add_argument("--processes", type=int, default=1, help="that measure side by side; reach wants 1")
    found.add_argument("--out", type=Path, default=RESULTS)
    return found


def answered(name: str, protocol: Protocol, seeds: int, path: Path, only: list[str], processes: int = 1) -> dict:
    """The result of a question. What its file holds already is not measured again; each new cell is written at once.

    Neither is a run that another question of the folder has made on this machine, with the same changes and seed. Seeds
    are the outer loop, so that what is there early compares all settings. ``processes`` measure cells side by side.
    A cell of another machine than the file's says so. Raises SystemExit if the file was made by another protocol.
    """
    settings, result = ALL[name].settings, _begun(name, protocol, path)
    done = {(cell["setting"], cell["seed"]) for cell in result["cells"]}
    wanted = [(setting, seed) for seed in range(seeds) for setting in settings if setting in (only or settings)]
    cells = [Cell(name, setting, seed, protocol) for setting, seed in wanted if (setting, seed) not in done]
    made = {cell: found for cell in cells if (found := _made(result, settings[cell.setting], cell.seed, path))}
    where = {} if machine() == result["machine"] else {"machine": machine()}
    new = ((cell, {**found, **where}) for cell, found in measured([c for c in cells if c not in made], processes))
    for cell, found in chain(made.items(), new):
        changes = list(settings[cell.setting])
        result["cells"].append({"setting": cell.setting, "seed": cell.seed, "changes": changes, **found})
        result["cells"].sort(key=lambda each: (each["seed"], list(settings).index(each["setting"])))
        write_text(path, json.dumps(result, indent=1) + "\n")
        print(f"{name}, {cell.setting}, seed {cell.seed}: {found}", flush=True)
    return result


def _made(result: dict, changes: Sequence[str], seed: int, path: Path) -> dict:
    """What another question has measured of the same run; empty if none has."""
    cells = (cell for other in _alike(result, path) for cell in other["cells"])
    same = (cell for cell in cells if (cell["changes"], cell["seed"]) == (list(changes), seed))
    return {name: value for name, value in next(same, {}).items() if name not in ("setting", "seed", "changes")}


def _alike(result: dict, path: Path) -> list[dict]:
    """The results of the folder's questions of the same kind, protocol and machine."""
    files = sorted(path.parent.glob("learning_*.json")) if result["question"] in QUESTIONS else ()
    known = [json.loads(file.read_text()) for file in files]
    parts = ("protocol", "machine")
    return [each for each in known if each["question"] in QUESTIONS and all(each[p] == result[p] for p in parts)]


def _begun(name: str, protocol: Protocol, path: Path) -> dict:
    if path.exists():
        result = json.loads(path.read_text())
        if result["protocol"] != asdict(protocol):
            raise SystemExit(f"{path} was measured as {result['protocol']}: name another folder with --out.")
        return result
    path.parent.mkdir(parents=True, exist_ok=True)
    result = {"question": name, "protocol": asdict(protocol), "machine": machine(), "cells": []}
    if name in QUESTIONS:
        result["base"] = next((each["base"] for each in _alike(result, path)), None) or base_scores(protocol)
    return result


def machine() -> dict:
    """Where the cells are measured."""
    return {"processor": processor(), "cores": os.cpu_count(), "machine": platform.machine(),
            "torch": torch.__version__}  # fmt: skip


if __name__ == "__main__":
    main()
