"""What training adds to the memory of a loaded model: what autograd saves, adapters, optimizer, and little else."""

import json
from pathlib import Path

import glibc
import pytest
from children import run_probe

ROOT = Path(__file__).resolve().parents[2]
GIGABYTE = 10**9


@pytest.fixture(scope="module")
def measured(tmp_path_factory, full_size):
    """Both modes on at least 1 GB of base weights as loaded; at full size the file alone has that much in bf16."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peak memory since a moment can only be read on Linux")
    weights = tmp_path_factory.mktemp("memory") / "weights.safetensors"
    try:
        lines = run_probe("memory_probe.py", weights, 26 if full_size else 11).splitlines()
    finally:
        weights.unlink(missing_ok=True)
    found = [json.loads(line) for line in lines if line.startswith("{")]
    return {row["checkpointing"]: row for row in found}


@pytest.mark.long
@pytest.mark.parametrize("checkpointing", [True, False])
def test_no_base_weight_is_saved_for_backward(measured, checkpointing):
    row = measured[checkpointing]
    assert row["saved"] > 0
    assert row["base_weights_saved"] == row["sizes_of_base_weights_saved"] == 0


@pytest.mark.long
@pytest.mark.parametrize("checkpointing", [True, False])
def test_memory_rises_by_what_is_saved_adapters_and_optimizer(measured, checkpointing):
    row = measured[checkpointing]
    assert row["base"] >= GIGABYTE
    assert row["rise"] <= 1.05 * (row["saved"] + row["adapters_and_optimizer"]) + 100e6, row


@pytest.mark.long
@pytest.mark.parametrize("checkpointing", [True, False])
def test_host_memory_is_what_the_planner_says(measured, checkpointing):
    """Weights and all that a step adds, resident, within the 5 % that the planner promises."""
    row = measured[checkpointing]
    peak = row["base"] + row["rise"]
    assert abs(row["base"] + row["planned"] - peak) <= 0.05 * peak, row


@pytest.mark.long
def test_checkpointing_saves_little(measured):
    """And its blocks' inputs are seen by saved-tensor hooks: the measure above would miss them in a closure."""
    tokens, hidden, blocks = 512 + 49, 1152, 13
    assert tokens * hidden * 4 * blocks <= measured[True]["saved"] < 0.3 * measured[False]["saved"]


@pytest.mark.long
def test_a_block_that_frees_at_once_within_another_does_not_end_it():
    """A model may be read inside of one: large tensors stay mapped one by one until the outer block ends."""
    if not glibc.known():
        pytest.skip("only glibc, from 2.33 on, tells what is mapped")
    assert run_probe("heap_probe.py").split() == ["1", "0"]
