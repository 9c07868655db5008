"""What Load FLUX.2, the caches and training take of host memory on large files: one model at a time, as stored."""

import json
from pathlib import Path

import pytest
from children import run_probe

from flux2_train.host.loading import quantise

ROOT = Path(__file__).resolve().parents[3]
GIGABYTE = 10**9


@pytest.fixture(scope="module")
def precisions(full_size):
    return quantise.available() if full_size else ("nvfp4",)  # the one that packs its numbers


@pytest.fixture(scope="module")
def rows(tmp_path_factory, full_size, precisions):
    """What a process has measured that loads, caches and trains, and what others have that quantise."""
    if not Path("/proc/self/status").exists():
        pytest.skip("a process's memory is read from Linux's /proc")
    lines = run_probe("load_probe.py", tmp_path_factory.mktemp("models"), int(full_size), *precisions).splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


@pytest.fixture(scope="module")
def measured(rows):
    """Resident memory of one process that loads, caches and trains, at each point; the files of mapped pages count."""
    return rows[0]


@pytest.mark.long
def test_quantising_holds_the_result_and_two_layers(rows, precisions):
    """Of a whole transformer and of a text encoder in two files, whose layers are of the type in the file (bf16)."""
    quantised = rows[1:]
    assert len(quantised) == 4 * len(precisions)
    for row in quantised:
        held = row["result"] - (row["matrices"] if row["on disk"] else 0)  # the matrices are mapped then
        assert row["rise"] > 0.9 * (held if row["on disk"] else row["matrices"]), row  # or nothing would be seen
        assert row["rise"] <= held + 2 * row["layer"], row
        assert row["left"] < 0.1 * row["result"], row


@pytest.mark.long
def test_loading_reads_no_weights(measured):
    """What is left, a tenth of one file, is the tokenizer and the modules."""
    assert measured["loaded"]["now"] - measured["loaded"]["before"] < 0.15 * min(measured["files"]), measured


@pytest.mark.long
def test_the_text_encoder_is_gone_before_the_transformer_comes(measured):
    assert measured["cached"]["now"] - measured["loaded"]["now"] < 0.15 * measured["files"][1], measured


@pytest.mark.long
def test_peak_memory_is_that_of_the_larger_file(measured, full_size):
    transformer, text = measured["files"]
    assert min(transformer, text) >= 0.95 * (2 if full_size else 1) * GIGABYTE
    assert measured["trained"]["peak"] <= 1.1 * max(transformer, text) + GIGABYTE, measured
