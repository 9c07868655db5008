"""Headers of safetensors files: read without mapping, bounded, and anything wrong is one sentence."""

import json
import time
from pathlib import Path

import pytest
import torch
from published import write_hollow
from safetensors import safe_open
from safetensors.torch import save_file

from flux2_train import safetensors_header
from flux2_train.errors import UserError
from flux2_train.host.loading import deferred


def test_it_says_what_the_library_says(tmp_path):
    path = tmp_path / "a.safetensors"
    text = torch.tensor(list(b"text"), dtype=torch.uint8)
    tensors = {"a.weight": torch.ones(3, 5), "b": torch.zeros(()), "c": torch.ones(7, dtype=torch.bfloat16), "t": text}
    save_file(tensors, path, {"some": "thing"})
    found = safetensors_header.read(path)
    with safe_open(path, "pt") as file:
        assert found.metadata == file.metadata() and set(found.tensors) == set(file.keys())
        for name, entry in found.tensors.items():
            expected = file.get_slice(name)
            assert [*entry.shape] == expected.get_shape() and entry.dtype == expected.get_dtype()
            assert entry.nbytes == tensors[name].nbytes
    assert (
        found.read("t") == b"text"
        and safetensors_header.read(path).read("a.weight") == tensors["a.weight"].numpy().tobytes()
    )


def test_a_file_larger_than_memory_is_read_and_not_mapped(tmp_path):
    path = write_hollow(tmp_path / "large.safetensors", {"a": ("F32", (1 << 20, 1 << 18)), "t": ("U8", (3,))}, {})
    assert path.stat().st_size > 1 << 40
    began = time.process_time()
    tensors, _ = deferred.outline(path)
    assert time.process_time() - began < 1
    assert tensors["a"].is_meta and tensors["a"].shape == (1 << 20, 1 << 18)
    assert tensors["t"].tolist() == [0, 0, 0]
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(path) not in maps.read_text()


def entry(**changed):
    return {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16], **changed}


def written(path, header, data=b"\0" * 16, size=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if size is None else size).to_bytes(8, "little") + text + data)
    return path


WRONG = {
    "no JSON": b"{this is no JSON",
    "no object": [1, 2],
    "nested": b"[" * 1_000_000,
    "nested shape": b'{"a": {"dtype": "F32", "shape": ' + b"[" * 500_000 + b"}}",
    "an entry that is no object": {"a": 5},
    "no shape": {"a": {"dtype": "F32", "data_offsets": [0, 16]}},
    "negative size": {"a": entry(shape=[-2, -2])},
    "broken size": {"a": entry(shape=[2.5, 2])},
    "true for a size": {"a": entry(shape=[True, 4])},
    "huge size": {"a": entry(shape=[1 << 80, 2])},
    "endless number": b'{"a": {"dtype": "F32", "shape": [' + b"9" * 10_000 + b'], "data_offsets": [0, 16]}}',
    "backwards": {"a": entry(data_offsets=[16, 0])},
    "bytes of another shape": {"a": entry(shape=[2, 3])},
    "three offsets": {"a": entry(data_offsets=[0, 8, 16])},
    "metadata that are none": {"__metadata__": [1], "a": entry()},
    "no text": b"\xff\xfe\x00",
}


@pytest.mark.parametrize("what", WRONG)
def test_a_damaged_header_is_one_sentence(what, tmp_path):
    path = written(tmp_path / "bad.safetensors", WRONG[what])
    began = time.process_time()
    with pytest.raises(UserError, match="bad.safetensors is no safetensors file .*: it is damaged. Download it again"):
        safetensors_header.read(path)
    assert time.process_time() - began < 2


def test_what_is_too_long_or_too_short_is_named_with_its_bytes(tmp_path):
    path = written(tmp_path / "long.safetensors", {"a": entry()}, size=1 << 50)
    with pytest.raises(UserError, match=f"long.safetensors .* it would take {1 << 50} bytes"):
        safetensors_header.read(path)
    path = written(tmp_path / "cut.safetensors", {"a": entry()}, data=b"\0" * 15)
    whole = path.stat().st_size + 1
    with pytest.raises(UserError, match=f"cut.safetensors is incomplete: it has {whole - 1} bytes, .* of {whole}"):
        safetensors_header.read(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="cut.safetensors is no safetensors file whose header can be read"):
        safetensors_header.read(path)
    text = write_hollow(tmp_path / "text.safetensors", {"tekken_model": ("U8", (1 << 30,))}, {})
    with pytest.raises(UserError, match=r"text.safetensors: tekken_model has 1073741824 bytes, at most"):
        deferred.outline(text)
    with pytest.raises(UserError, match=r"a.ckpt is not a safetensors file"):
        safetensors_header.read(tmp_path / "a.ckpt")


def test_types_without_use_are_named(tmp_path):
    path = written(tmp_path / "odd.safetensors", {"a": entry(dtype="F4")})
    assert safetensors_header.read(path).tensors["a"].dtype == "F4"
    with pytest.raises(UserError, match="odd.safetensors holds a as F4, which cannot be read"):
        deferred.outline(path)
