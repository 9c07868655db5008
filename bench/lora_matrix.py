"""LoRA files between programs, each with its own code: python -m bench.lora_matrix.

Every program writes every kind of adapter it has, with random numbers, on the blocks of a small FLUX.2; every program
reads every file. A cell is the largest difference of any layer's weight from the one that acted in the program that
wrote the file, as a share of what the adapter changes there: 0 is exact, 1 as if the layer had no adapter. Without
checkouts, named by MUSUBI_TUNER, AI_TOOLKIT and ONETRAINER, and packages (diffusers, peft, lycoris-lora) their rows and
columns are left out, and said to be. Prints a table and writes bench/results/lora_matrix.json.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import math
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from flux2_train.host.system.bootstrap import import_comfyui  # noqa: E402

import_comfyui("--cpu")

from bench.lora import checkouts, packages  # noqa: E402
from bench.lora.ours import ours  # noqa: E402
from bench.lora.trees import Peer, Weights, Written, base_weights, in_blocks  # noqa: E402


def peers() -> list[Peer]:
    """All programs, this pack first."""
    others = (checkouts.musubi, checkouts.ai_toolkit, packages.lycoris, checkouts.onetrainer, packages.diffusers,
              packages.peft, packages.comfyui)  # fmt: skip
    return [ours(), *(peer() for peer in others)]


def largest(found: Weights, written: Written, weights: Weights) -> float:
    """The largest difference of any layer, as a share of the adapter's effect there."""
    worst = 0.0
    for name in in_blocks(weights):
        effect = (written.made[name] - weights[f"{name}.weight"]).norm().item()
        missed = (found[name] - written.made[name]).norm().item()
        if not missed < math.inf:
            return math.inf
        if missed:
            worst = max(worst, missed / effect if effect else math.inf)
    return worst


def cell(reader: Peer, written: Written, weights: Weights) -> float | str:
    """The largest difference, or in a few words why the program does not read the file."""
    try:
        with _quiet():
            found = reader.reads(weights, written.path)
        return largest({name: w.detach().float() for name, w in found.items()}, written, weights)
    except Exception as error:  # other programs' code: whatever it raises is its answer
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def matrix(chosen: str) -> tuple[dict[str, dict[str, float | str]], dict[str, str]]:
    """(cells by writer and kind, then by reader; what could not take part and why)."""
    weights, everybody = base_weights(), peers()
    missing = {peer.name: peer.missing for peer in everybody if peer.missing}
    readers = [peer for peer in everybody if peer.reads and not peer.missing]
    rows: dict[str, dict[str, float | str]] = {}
    for writer in everybody:
        for kind, write in writer.writes.items() if not writer.missing else ():
            row = f"{writer.name}: {kind}"
            if chosen.lower() not in row.lower():
                continue
            with tempfile.TemporaryDirectory() as folder:
                try:
                    with _quiet():
                        written = write(weights, Path(folder))
                except Exception as error:  # the writing program's own
                    missing[row] = f"cannot be written: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
                    continue
                rows[row] = {reader.name: cell(reader, written, weights) for reader in readers}
                print(_line(row, rows[row]), flush=True)
    return rows, missing


def _line(row: str, cells: dict[str, float | str]) -> str:
    shown = (f"{value:.1e}" if isinstance(value, float) else "refused" for value in cells.values())
    return f"{row:48}" + "".join(f"{value:>14}" for value in shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, variable in checkouts.FOLDERS.items():
        parser.add_argument(f"--{name.lower()}", metavar="FOLDER", help=f"checkout of {name}; else {variable}")
    parser.add_argument("--only", default="", help="rows whose name has this in it; nothing is written to a file then")
    options = parser.parse_args()
    for name, variable in checkouts.FOLDERS.items():
        folder = getattr(options, name.lower().replace("-", "_"))
        if folder:
            os.environ[variable] = folder
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    heads = [peer.name for peer in peers() if peer.reads and not peer.missing]
    print(f"{'':48}" + "".join(f"{name[:13]:>14}" for name in heads))
    rows, missing = matrix(options.only)
    for name, why in missing.items():
        print(f"left out: {name}: {why}")
    refused = sorted({f"{reader}: {value}" for cells in rows.values() for reader, value in cells.items()
                      if isinstance(value, str)})  # fmt: skip
    print(*refused, sep="\n")
    if not options.only:
        path = ROOT / "bench" / "results" / "lora_matrix.json"
        path.write_text(json.dumps({"rows": rows, "left out": missing}, indent=1) + "\n")


if __name__ == "__main__":
    main()
