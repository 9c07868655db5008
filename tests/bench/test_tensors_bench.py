"""bench.tensors: the same run has the same hashes, another one has others, and what differs is named."""

import json

import pytest
import torch
from safetensors.torch import save_file

from bench import tensors

HASHES = {"torch": "2", "runs": {"plain": {"lora": "a", "losses": "b"}, "dora": {"lora": "c"}}}


def compared(monkeypatch, tmp_path, before, after):
    """The exit code of the command that compares two results."""
    path = tmp_path / "before.json"
    path.write_text(json.dumps(before))
    monkeypatch.setattr(tensors, "measure", lambda root, names: after)
    monkeypatch.setattr("sys.argv", ["bench.tensors", "--against", str(path)])
    with pytest.raises(SystemExit) as end:
        tensors.main()
    return end.value.code


def test_equal_hashes_exit_with_0(monkeypatch, tmp_path, capsys):
    assert compared(monkeypatch, tmp_path, HASHES, HASHES) == 0
    assert "3 parts of 2 runs are the same" in capsys.readouterr().out


def test_every_part_that_differs_is_named(monkeypatch, tmp_path, capsys):
    after = {"torch": "2", "runs": {"plain": {"lora": "x", "losses": "b", "ema": "y"}}}
    assert compared(monkeypatch, tmp_path, HASHES, after) == 1
    lines = ["dora: lora is missing", "plain: ema is new", "plain: lora differs"]
    assert capsys.readouterr().out.splitlines() == lines


def test_one_bit_of_a_tensor_changes_its_hash_and_no_other(tmp_path):
    a, b = torch.zeros(3), torch.ones(2, dtype=torch.bfloat16)
    save_file({"a": a, "b": b}, tmp_path / "before.safetensors", {"note": "before"})
    a.view(torch.int32)[1] = 1
    save_file({"a": a, "b": b}, tmp_path / "after.safetensors", {"note": "after"})
    (noted, before), (_, after) = (tensors.read(tmp_path / f"{name}.safetensors") for name in ("before", "after"))
    assert noted["note"] == "before"
    assert before["a"] != after["a"] and before["b"] == after["b"]


def test_dtype_and_shape_are_part_of_the_hash(tmp_path):
    forms = {"a": torch.zeros(4), "b": torch.zeros(2, 2), "c": torch.zeros(4, dtype=torch.int32)}
    save_file(forms, tmp_path / "zeros.safetensors")
    assert len(set(tensors.read(tmp_path / "zeros.safetensors")[1].values())) == 3


@pytest.mark.slow
def test_a_run_that_goes_on_ends_with_the_tensors_of_one_that_was_never_interrupted():
    runs = tensors.measure(tensors.ROOT, ["plain", "resume"])["runs"]
    resumed, straight = runs["resume"], runs["plain"]
    same = {name for name in straight if straight[name] == resumed[name]}
    assert same >= {"lora", "losses", "adapter", "optimizer", "generator", "drawn", "rates", "guards"}
