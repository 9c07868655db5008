"""Model files whose download was cut, or brought something else: each loader names the file and what to do."""

import time

import pytest
import torch

from flux2_train import nano
from flux2_train.errors import UserError
from flux2_train.flavours import FLAVOURS
from flux2_train.formats import FORMATS
from flux2_train.host.encoding.text_encoder import load_text_encoder
from flux2_train.host.encoding.vae import load_vae
from flux2_train.host.loading import files, load, quantise

ROW = FLAVOURS["nano"]
LOADERS = {
    "transformer": lambda path: load.load_transformer(path),
    "quantised transformer": lambda path: load.load_transformer(path, next(iter(FORMATS))),
    "text encoder": lambda path: load_text_encoder(path, ROW),
    "VAE": lambda path: load_vae(path, ROW),
}
OTHER = {
    "a web page": b"<!DOCTYPE html><html><head><title>Access denied</title></head></html>" * 30,
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n",
    "a pickle": b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
}


@pytest.fixture(scope="module")
def whole(comfy_folders):
    """The bytes of nano's three files, by loader."""
    transformer, text, vae = (
        files.locate(f).read_bytes() for f in (ROW.transformer_files("auto"), ROW.text_encoders, ROW.vaes)
    )
    return {"transformer": transformer, "quantised transformer": transformer, "text encoder": text, "VAE": vae}


def refused(part, path) -> str:
    began = time.process_time()
    with pytest.raises(UserError) as refusal:
        LOADERS[part](path)
    assert time.process_time() - began < 2
    return str(refusal.value)


@pytest.mark.parametrize("part", LOADERS)
def test_a_file_that_is_cut_is_named_with_its_bytes_and_what_to_do(part, whole, tmp_path):
    data, path = whole[part], tmp_path / "downloaded.safetensors"
    header = 8 + int.from_bytes(data[:8], "little")
    for end in (0, 7, 8, 100, header - 1, header, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:end])
        message = refused(part, path)
        assert message.startswith("downloaded.safetensors is ") and "ownload it again" in message, (end, message)
        if end >= header:
            assert f"it has {end} bytes, its header speaks of {len(data)}" in message


@pytest.mark.parametrize("part", LOADERS)
@pytest.mark.parametrize("what", OTHER)
def test_something_else_under_a_models_name_is_named(part, what, tmp_path):
    path = tmp_path / "downloaded.safetensors"
    path.write_bytes(OTHER[what])
    assert "downloaded.safetensors is no safetensors file" in refused(part, path)


@pytest.mark.parametrize("end", [0, 5, 3000, -1], ids=["empty", "in the size", "in the header", "in the weights"])
def test_a_kept_quantised_file_that_is_cut_is_made_again(end, whole, tmp_path):
    source, precision = tmp_path / "source.safetensors", "int8" if "int8" in quantise.available() else "fp8 (scaled)"
    source.write_bytes(whole["transformer"])
    path = quantise.kept([source], precision, "cpu", tmp_path / "kept")
    made = path.read_bytes()
    path.write_bytes(made[:end])
    assert quantise.kept([source], precision, "cpu", tmp_path / "kept") == path
    assert path.read_bytes() == made and [p.name for p in path.parent.iterdir()] == [path.name]
    changed = path.stat().st_mtime_ns
    quantise.kept([source], precision, "cpu", tmp_path / "kept")
    assert path.stat().st_mtime_ns == changed  # a whole one is kept
    assert torch.equal(
        load.load_transformer(path).model_state_dict()["diffusion_model.img_in.weight"],
        nano.transformer()["img_in.weight"],
    )
