"""The pack on a device whose tensors do not mix with the CPU's, as a GPU's do not, where no GPU can be had.

The tests of other files run again in a process that has such a device (``other_device.py``), as a user's nodes would.
"""

import os
import subprocess
import sys

import forks
import other_device
import pytest
from conftest import ROOT

NODES = ["tests/nodes/test_nodes.py", "tests/nodes/test_cache_nodes.py"]
ENGINE = ["placing", "streaming", "one_wait"]
# Of NODES, what depends on where ComfyUI keeps weights; the rest runs once, or with --all.
PLACED = "caches_train_apply_and_sample or memory_is_free_before_the_transformer_loads"
MORE = [
    "compare",
    "deferred",
    "job",
    "nodes_trainer",
    "optimizers",
    "resume",
    "saving",
    "streamed_text",
    "trainer",
]  # with --all
# Of ENGINE, what a device of the tests' own computes; with --all here too.
WITHOUT_A_DEVICE = "late_device or without_the_waits or fetched_ahead"
# Of the tests of a model split over cards, and of passes in flight over them; the rest with --all.
SPLIT = "clipped or accumulate or streamed or routed or number_of_cards or cancel or plan_says or refused or row_over"
IN_FLIGHT = "recomputed or same_time and 2 or repeats or one_unit or next_one_alone"
NOT_THERE = {
    "latents_in_batches": "the device's storages cannot be copied by copy.deepcopy",
    "whose_numbers_the_device_lacks": "compares the device's rounding with the CPU's",
}


def run(files: list[str], arguments: str = "", chosen: str = "", cards: int = 1) -> str:
    """What pytest says of the files' tests, or of those whose names are ``chosen``, on the device or so many of it."""
    left_out = " and ".join([*(f"not {name}" for name in NOT_THERE), *([f"({chosen})"] if chosen else [])])
    command = ["-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", "-k", left_out, *files]
    own = {"FLUX2_DEVICE": "other", "FLUX2_CARDS": str(cards), "FLUX2_ARGUMENTS": arguments, "OMP_NUM_THREADS": "1"}
    variables = {**os.environ, **own}
    done = forks.run(command, variables, ROOT)
    assert done.returncode == 0, done.stdout[-8000:]
    return done.stdout.splitlines()[-1]


MIXED = """
import other_device, torch
with other_device.installed():
    there, here, second = torch.ones(2, 2, device="npu"), torch.ones(2, 2), torch.ones(2, 2, device="npu:1")
joined = lambda: torch.cat((there, here))
for mix in (lambda: there + here, lambda: here @ there, lambda: here[0, 0].add_(there.sum()), joined,
            lambda: there + second, lambda: second * there.sum()):
    try:
        mix()
        print("mixed")
    except RuntimeError:
        print("refused")
print((there @ there.T + 1).cpu().tolist())
"""


@pytest.mark.long
def test_the_device_refuses_what_a_gpu_refuses():
    other_device.require_buildable()
    done = subprocess.run([sys.executable, "-c", MIXED], cwd=ROOT / "tests" / "helpers", capture_output=True, text=True,
                          env={**os.environ, "FLUX2_CARDS": "2"})  # fmt: skip
    assert done.stdout.splitlines() == ["refused"] * 6 + ["[[3.0, 3.0], [3.0, 3.0]]"], done.stderr


@pytest.mark.long
def test_the_nodes_and_the_engine(full_size):
    other_device.require_buildable()
    files = [*NODES, *(found(name) for name in (*ENGINE, *(MORE if full_size else [])))]
    assert " passed" in run(files, chosen="" if full_size else f"not ({WITHOUT_A_DEVICE})")


@pytest.mark.drawn(cases=1)
@pytest.mark.long
@pytest.mark.parametrize("arguments", ["--lowvram", "--novram", "--gpu-only", "--highvram"])
def test_the_nodes_wherever_comfyui_keeps_weights(arguments, full_size):
    """However ComfyUI is told to use the device's memory: what it computes on the CPU then goes there and back."""
    other_device.require_buildable()
    assert " passed" in run(NODES, arguments, "" if full_size else PLACED)


def found(name: str) -> str:
    """The file of the tests of that name, whichever room it lies in."""
    (path,) = (ROOT / "tests").rglob(f"test_{name}.py")
    return str(path.relative_to(ROOT))


@pytest.mark.long
def test_a_model_split_over_cards(full_size):
    other_device.require_buildable()
    files = [found("cards"), found("cards_pipeline"), found("gpu_several")]
    assert " passed" in run(files, chosen="" if full_size else f"{SPLIT} or {IN_FLIGHT}", cards=3)
