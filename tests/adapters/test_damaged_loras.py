"""LoRA files that are cut, empty or made to hurt: one sentence with the file's name or the layer's, in no time."""

import json

import pytest
import torch
from hostile import within
from safetensors.torch import save, save_file

from flux2_train import safetensors_header
from flux2_train.adapters import peft_config, read
from flux2_train.adapters.names import sizes_of
from flux2_train.errors import UserError
from flux2_train.flavours import FLAVOURS

NANO = FLAVOURS["nano"]
SIZES = sizes_of(*NANO.sizes)
LAYER, (IN, OUT) = next((name, size) for name, size in SIZES.items() if name.endswith("linear2"))
STEM = f"diffusion_model.{LAYER}"


def kinds() -> dict[str, dict[str, torch.Tensor]]:
    """A whole file of each kind of adapter, on one layer."""
    generator = torch.Generator().manual_seed(0)

    def ones(*shape):
        return torch.randn(shape, generator=generator)

    plain = {f"{STEM}.lora_A.weight": ones(4, IN), f"{STEM}.lora_B.weight": ones(OUT, 4)}
    return {
        "lora": plain,
        "alpha": {**plain, f"{STEM}.alpha": torch.tensor(2.0)},
        "dora": {**plain, f"{STEM}.dora_scale": ones(OUT, 1)},
        "magnitude": {**plain, f"{STEM}.lora_magnitude_vector": ones(OUT)},
        "loha": {f"{STEM}.hada_w1_a": ones(OUT, 2), f"{STEM}.hada_w1_b": ones(2, IN), f"{STEM}.hada_w2_a": ones(OUT, 2),
                 f"{STEM}.hada_w2_b": ones(2, IN), f"{STEM}.alpha": torch.tensor(2.0)},
        "lokr": {f"{STEM}.lokr_w1": ones(2, 2), f"{STEM}.lokr_w2_a": ones(OUT // 2, 3),
                 f"{STEM}.lokr_w2_b": ones(3, IN // 2), f"{STEM}.alpha": torch.tensor(2.0)},
        "full": {f"{STEM}.diff": ones(OUT, IN)},
        "oft": {f"{STEM}.oft_blocks": ones(OUT // 4, 4, 4), f"{STEM}.alpha": torch.tensor(1e-3)},
        "peft's oft": {f"{STEM}.oft_R.weight": ones(IN // 4, 6)},
    }  # fmt: skip


KINDS = kinds()
SHAPES = [(), (0,), (1,), (3,), (0, 3), (3, 0), (0, 0), (1, 1), (2, 3, 4), (0, 2, 2), (1, 2, 3, 4, 5), (7, 5)]
KEYS = [(kind, key) for kind, tensors in KINDS.items() for key in tensors]


def read_all(path):
    return read.read(read.load(path), SIZES, "nano")


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_files_are_read(tmp_path, kind):
    save_file(KINDS[kind], tmp_path / "a.safetensors")
    parts, unmatched = read_all(tmp_path / "a.safetensors")
    assert list(parts) == [LAYER] and not unmatched


@pytest.mark.parametrize("kind, key", KEYS, ids=[f"{kind}-{key.removeprefix(STEM)}" for kind, key in KEYS])
def test_odd_shapes_and_types_are_read_or_refused_in_one_sentence(tmp_path, kind, key):
    path, refused = tmp_path / "a.safetensors", 0
    odd = [torch.ones(shape) for shape in SHAPES]
    odd += [KINDS[kind][key].to(dtype) for dtype in (torch.int64, torch.bool, torch.float8_e4m3fn, torch.float64)]
    odd += [torch.full_like(KINDS[kind][key], value) for value in (float("nan"), float("inf"), 0.0)]
    for tensor in [*odd, None]:
        tensors = {k: v for k, v in KINDS[kind].items() if k != key} | ({} if tensor is None else {key: tensor})
        save_file(tensors, path)
        try:
            read_all(path)
        except UserError as error:
            refused += 1
            assert str(error).isprintable() and len(str(error)) < 500 and "object at 0x" not in str(error)
    assert refused


def test_files_that_are_cut_anywhere_are_named_with_what_to_do(tmp_path):
    """The commonest broken download."""
    data, path = save(KINDS["lora"]), tmp_path / "cut.safetensors"
    for end in (0, 1, 7, 8, 9, 100, 8 + int.from_bytes(data[:8], "little"), len(data) // 2, len(data) - 1):
        path.write_bytes(data[:end])
        with pytest.raises(UserError, match=r"cut.safetensors (is incomplete|is no safetensors).*Download it again"):
            read.load(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="the file is empty. Download it again"):
        read.header(path)
    path.write_bytes(data[:-1])
    with pytest.raises(UserError, match=f"it has {len(data) - 1} bytes, its header speaks of {len(data)}"):
        read.load(path)


def crafted(header, data=bytes(64)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(start=0, end=64, shape=(4, 4), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


HOSTILE = {
    "a web page": b"<!DOCTYPE html><html><head><title>Not found</title>" * 20,
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n",
    "a pickle": b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
    "a header of all the file": (1 << 60).to_bytes(8, "little") + bytes(100),
    "deep": crafted(b'{"__metadata__": ' + b'{"a":' * 100_000),
    "overlapping": crafted({"a.lora_A.weight": entry(), "a.lora_B.weight": entry()}),
    "a hole": crafted({"a.lora_A.weight": entry(32, 96)}, bytes(96)),
    "more than said": crafted({"a.lora_A.weight": entry()}, bytes(100)),
    "an unknown type": crafted({"a.lora_A.weight": entry(dtype="F13")}),
    "types of bits": crafted({"a.lora_A.weight": entry(dtype="F4", shape=(4, 32))}),
    "a type for a dictionary": crafted({"a.lora_A.weight": {**entry(), "dtype": {"a": 1}}}),
    "numbers for metadata": crafted({"__metadata__": {"a": 1}, "a.lora_A.weight": entry()}),
    "the same name twice": crafted(b'{"a": {"dtype":"U8","shape":[64],"data_offsets":[0,64]}, "a": {"dtype":"U8",'
                                   b'"shape":[64],"data_offsets":[0,64]}}'),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_what_is_no_lora_is_named(tmp_path, what):
    path = tmp_path / "odd.safetensors"
    path.write_bytes(HOSTILE[what])
    with within(2, megabytes=100), pytest.raises(UserError) as caught:
        parts, unmatched = read_all(path)
        read.require_matched(unmatched, len(unmatched), "nano")
        if parts:
            raise UserError(f"odd.safetensors has parts {parts}")
    said = str(caught.value)
    assert ("odd.safetensors" in said or "of this LoRA match nothing" in said) and len(said) < 700


@pytest.mark.parametrize("config", ["[" * 100_000, '{"r": NaN}', '{"r": ' + "9" * 5000 + "}", '{"lora_alpha": 1e999}'])
def test_a_header_with_a_configuration_that_is_none_is_refused(tmp_path, config):
    save_file(KINDS["lora"], tmp_path / "a.safetensors", {peft_config.HEADER: config})
    with within(2), pytest.raises(UserError, match="no adapter configuration that can be read"):
        read.load(tmp_path / "a.safetensors")


def test_an_adapter_configuration_of_three_gigabytes_is_not_read(tmp_path):
    """It took twice its size in memory."""
    save_file(KINDS["lora"], tmp_path / peft_config.FILE)
    with (tmp_path / peft_config.BESIDE).open("wb") as file:
        file.truncate(3 << 30)  # a hole, which takes no room on the disk
    with (
        within(2, megabytes=50),
        pytest.raises(UserError, match=f"adapter_config.json is {3 << 30} bytes long; at most {peft_config.LARGEST}"),
    ):
        read.load(tmp_path / peft_config.FILE)


def test_a_pipe_for_a_lora_does_not_wait(tmp_path):
    import os

    os.mkfifo(tmp_path / "a.safetensors")
    for look in (read.load, read.header, safetensors_header.read):
        with within(1), pytest.raises(UserError, match="is not there"):
            look(tmp_path / "a.safetensors")
