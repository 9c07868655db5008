"""Whether a change keeps every bit of what is learned: ``python -m bench.tensors`` in the environment of scripts/test.

Runs a fixed set of short trainings of nano on the CPU and prints a SHA-256 of every part of their results: the LoRA
file's tensors, the losses, and each part of the last checkpoint (masters, optimizer, random numbers, guards).

    python -m bench.tensors --out before.json
    python -m bench.tensors --against before.json

The second exits with 1 and names what differs. ``--root DIR`` runs another checkout of this pack instead of this one.
Only the terminal's commands, job files and the files of a run are used, so that modules may move and be renamed
between two runs. The same bits are to be expected on the same processor with the same torch only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STEPS = 4
NOT_LEARNED = {"initial_lr"}  # torch's scheduler kept it in the optimizer, until we had one of our own
THREADS = 1  # how sums are split between threads changes their last bits
CHECKPOINT = "flux2_train.checkpoint"  # the entry of a checkpoint's header that holds its state, see docs/run-folder.md
# What each run sets in addition to the common settings. "edit" replaces the common data set by its own.
RUNS: dict[str, dict] = {
    "plain": {},
    "preservation": {"training": {"preservation": 1.0}},
    "dora": {"training": {"adapter": {"dora": True}}},
    "lokr": {"training": {"adapter": {"kind": "lokr"}}},
    "edit": {"dataset": {"folder": "edit", "references": ["edit-reference"], "class_word": "same"}},
    "fp8": {"model": {"precision": "fp8 (scaled)"}},
    "resume": {"training": {"steps": STEPS // 2}},  # goes on to STEPS from its checkpoint
}


def job(name: str, root: Path, folder: Path) -> dict:
    """The job file of one of RUNS."""
    data = root / "datasets"
    common = {
        "model": {"flavour": "nano"},
        "dataset": {"folder": "character", "trigger": "vorn", "class_word": "creature", "resolution": 64},
        "training": {"name": name, "steps": STEPS, "rank": 4, "learning_rate": 2e-3, "validation_items": 1, "seed": 7},
        "output": {"loras": str(folder / "loras"), "runs": str(folder / "runs")},
    }
    merged = {section: {**values, **RUNS[name].get(section, {})} for section, values in common.items()}
    dataset = merged["dataset"]
    dataset["folder"] = str(data / dataset["folder"])
    dataset["references"] = [str(data / reference) for reference in dataset.get("references", ())]
    return merged


def train(name: str, root: Path, folder: Path) -> dict[str, str]:
    """Train one of RUNS in processes of their own. Returns the hash of each part of the result."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps(job(name, root, folder)))
    run, lora = folder / "runs" / name, folder / "loras" / f"{name}.safetensors"
    _command(root, folder, "train", path)
    if name == "resume":
        _command(root, folder, "resume", run, "--set", f"steps={STEPS}")
        again = lora.with_stem(f"{name}_2")  # as versions before named the LoRA of a run that was made longer
        lora = again if again.is_file() else lora
    return {"lora": digest(read(lora)[1]), **checkpoint_parts(max((run / "checkpoints").glob("step_*.safetensors")))}


def _command(root: Path, folder: Path, *words: object) -> None:
    """One command of the terminal of the checkout in ``root``, with ComfyUI's folders in ``folder``."""
    threads = {f"{library}_NUM_THREADS": str(THREADS) for library in ("OMP", "MKL", "OPENBLAS")}
    command = ["-m", "flux2_train", *map(str, words), "--comfyui", f"--cpu --base-directory {folder}"]
    done = _python(command, {**os.environ, **threads}, root)
    if done.returncode:
        sys.exit(f"python {' '.join(command)} ended with {done.returncode}:\n{done.stderr}")


def _python(arguments: list[str], environment: dict[str, str], cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)


def checkpoint_parts(path: Path) -> dict[str, str]:
    """The hash of each part of a checkpoint's state, and of each list of its history but the seconds."""
    metadata, tensors = read(path)
    state = _filled(json.loads(metadata[CHECKPOINT])["state"], tensors)
    history = state.pop("history")
    history.pop("seconds")
    return {name: digest(part) for name, part in {**state, **history}.items()}


def _filled(packed, tensors: dict[str, str]):
    """A checkpoint's state with the hash of its bytes in the place of every tensor."""
    if isinstance(packed, list):
        return [_filled(each, tensors) for each in packed]
    if not isinstance(packed, dict):
        return packed
    if "$tensor" in packed:
        return tensors[packed["$tensor"]]
    return {name: _filled(value, tensors) for name, value in packed.items() if name not in NOT_LEARNED}


def read(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """(metadata, hash of dtype, shape and bytes by name) of a safetensors file."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        metadata, start = header.pop("__metadata__", {}), file.tell()
        hashes = {}
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            file.seek(start + begin)
            form = json.dumps([entry["dtype"], entry["shape"]]).encode()
            hashes[name] = hashlib.sha256(form + file.read(end - begin)).hexdigest()
    return metadata, hashes


def digest(value) -> str:
    """SHA-256 of what JSON can hold; the order of keys does not count."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def differences(before: dict, after: dict) -> Iterator[str]:
    """One line for each part that is not the same in both, or is in one alone."""
    for name in before.keys() | after.keys():
        old, new = before.get(name, {}), after.get(name, {})
        for part in old.keys() | new.keys():
            if old.get(part) != new.get(part):
                why = "differs" if part in old and part in new else "is new" if part in new else "is missing"
                yield f"{name}: {part} {why}"


def measure(root: Path, names: list[str]) -> dict:
    """Train RUNS of these names with the checkout in ``root``."""
    made = {"torch": version("torch"), "threads": THREADS, "steps": STEPS, "runs": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            began = time.monotonic()
            made["runs"][name] = train(name, root, Path(folder))
            print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    return made


def main() -> None:
    """Print or write the hashes, and compare them."""
    parser = argparse.ArgumentParser(prog="python -m bench.tensors", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--root", type=Path, default=ROOT, metavar="DIR",
                        help="a checkout of this pack (default: this one)")  # fmt: skip
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS), help="only these (default: all)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the hashes here instead of printing them")
    parser.add_argument("--against", type=Path, metavar="FILE", help="compare with the hashes that --out has written")
    asked = parser.parse_args()
    made = measure(asked.root.resolve(), asked.runs)
    text = json.dumps(made, indent=1) + "\n"
    if asked.out:
        asked.out.write_text(text)
    elif not asked.against:
        print(text, end="")
    if asked.against:
        before = json.loads(asked.against.read_text())
        if before["torch"] != made["torch"]:
            print(f"note: torch was {before['torch']} and is {made['torch']}", file=sys.stderr)
        runs = {name: parts for name, parts in before["runs"].items() if name in asked.runs}
        found = sorted(differences(runs, made["runs"]))
        print("\n".join(found) or f"{sum(map(len, runs.values()))} parts of {len(runs)} runs are the same")
        sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
