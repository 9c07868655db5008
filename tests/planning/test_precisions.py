"""The table of precisions: it holds what ComfyUI and torch say of themselves, and nothing else names a precision."""

import os
import re
from pathlib import Path

import comfy.quant_ops
import pytest
import torch
from comfyui_version import __version__ as comfyui

from flux2_train.formats import CHOICES, FORMATS, PRECISIONS, ROWS, dequantising, of_layout, tiers
from flux2_train.host.loading import quantise
from flux2_train.host.loading.weights import dtype_of

ROOT = Path(__file__).resolve().parents[2]
# Of an empty file of 2001: what the pack has named kept copies by from the beginning.
KEYS = {
    "fp8 (scaled)": "a439fb155fa5",
    "mxfp8": "0492eb54ad56",
    "int8": "45832fe14379",
    "nvfp4": "0c9909288a36",
    "int4": "c2a32a64b34d",
}


def at_least(version, oldest):
    numbers = [tuple(map(int, re.findall(r"\d+", text)[:3])) for text in (version, oldest)]
    return numbers[0] >= numbers[1]


def test_a_precision_is_named_in_the_table_alone():
    """So that a new one is one row; of mxfp8 no other module of the engine needs to know anything."""
    naming = [path for path in (ROOT / "flux2_train").rglob("*.py") if re.search(r"[\"']mxfp8[\"']", path.read_text())]
    assert naming == [ROOT / "flux2_train" / "formats.py"]


def test_names_are_told_apart():
    assert len(set(CHOICES)) == len(ROWS) + 1 == len(PRECISIONS) + 1


@pytest.mark.parametrize("row", [row for row in ROWS if row.format], ids=lambda row: row.name)
def test_the_oldest_versions_with_a_format(row):
    """On each ComfyUI and torch that the tests run on."""
    there = at_least(comfyui, row.comfyui or "0") and at_least(torch.__version__, row.torch or "0")
    assert (row.name in quantise.available()) == there


@pytest.mark.parametrize("name", FORMATS)
def test_comfyuis_class_tells_the_precision(name):
    if name not in quantise.available():
        pytest.skip(f"this ComfyUI has no {name}")
    assert of_layout(comfy.quant_ops.QUANT_ALGOS[FORMATS[name].name]["comfy_tensor_layout"]) == name


def test_a_tensor_that_is_not_quantised_has_no_layout():
    assert of_layout("") == ""


@pytest.mark.parametrize("row", [row for row in ROWS if not row.format], ids=lambda row: row.name)
def test_plain_precisions_take_the_bytes_of_their_dtype(row):
    assert torch.empty(6, 4, dtype=dtype_of(row.name)).nbytes == row.stored_bytes(6, 4)


def test_what_has_no_row_is_cast():
    """A file's own numbers: only the result is alive."""
    assert dequantising("as in file") == dequantising("bf16") == 1


def test_auto_prefers_the_more_precise():
    bits = [max(PRECISIONS[name].bits for name in tier) for tier in tiers()]
    assert bits == sorted(bits, reverse=True)
    assert not {name for tier in tiers() for name in tier} & {"fp16", "fp32", "fp8 (e4m3)"}  # these are asked for only


def test_kept_copies_keep_their_names(tmp_path):
    """A quantised copy that an earlier version of the pack has kept is found again, not made again."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(8))
    os.utime(path, ns=(10**18, 10**18))
    assert {name: quantise._key([path], name) for name in FORMATS} == KEYS
