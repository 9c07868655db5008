"""Which files of a flavour are there, missing or of the wrong kind, and what memory allows, before any is loaded."""

import re
from pathlib import Path

import folder_paths
import pytest
import torch
from mistakes import write_files
from safetensors.torch import save_file

from flux2_train.flavours import FLAVOURS
from flux2_train.host.loading import kinds
from flux2_train.planning.work import Machine
from flux2_train.runs import files_there, precision
from flux2_train.settings.model import ModelSettings


def lines(**settings):
    return list(files_there.lines(ModelSettings(**settings)))


def test_what_is_missing_is_named_with_its_address_and_whether_it_is_gated(comfy_folders):
    transformer, encoder, vae, *memory = lines(flavour="klein-9b")
    assert transformer.startswith("bad: transformer: flux-2-klein-base-9b.safetensors is missing")
    assert FLAVOURS["klein-9b"].transformers["base"][0].url in transformer and "It is gated" in transformer
    assert "models/text_encoders" in encoder and "gated" not in encoder
    assert "flux2-vae.safetensors is missing" in vae
    assert "free:" in memory[0] and memory[1].startswith("512 px, rank 16:") and memory[2].startswith("1024 px")


def test_nano_is_there_or_comes_with_the_pack(comfy_folders):
    found = lines(flavour="nano")
    assert all(line.startswith("good: ") for line in found[:3]) and len(found) == 6


def test_a_file_of_another_kind_is_told(tmp_path):
    write_files(tmp_path)
    models, row = tmp_path / "models", FLAVOURS["klein-4b"]
    assert "is not a FLUX.2 transformer" in kinds.wrong_transformer(models / "diffusion_models/sdxl.safetensors", row)
    assert "is no text encoder" in kinds.wrong_text_encoder(models / "vae" / "sdxl_vae.safetensors", row)
    wrong = kinds.wrong_text_encoder(models / "text_encoders" / "other_encoder.safetensors", row)
    assert wrong == "other_encoder.safetensors is a text encoder 64 wide; klein-4b needs one 2560 wide."
    assert "is no FLUX.2 VAE" in kinds.wrong_vae(models / "vae" / "sdxl_vae.safetensors", row)
    (tmp_path / "cut.safetensors").write_bytes(b"\x00" * 20)
    assert "cut.safetensors" in kinds.wrong_vae(tmp_path / "cut.safetensors", row)
    save_file({"model.embed_tokens.weight": torch.zeros(1, 2560)}, tmp_path / "right.safetensors")
    assert kinds.wrong_text_encoder(tmp_path / "right.safetensors", row) == ""


def test_files_that_fit_are_not_called_wrong(shipped_nano):
    found = files_there.parts(ModelSettings(flavour="nano"))
    assert [part.wrong for part in found] == ["", "", ""] and all(part.path for part in found)
    assert re.fullmatch(r"good: transformer: flux2-nano-4-transformer.safetensors, 19.\d MB", lines(flavour="nano")[0])
    assert precision.outlook(ModelSettings(flavour="nano"), found[0].path)[0].startswith("as in file, free: ")


@pytest.mark.parametrize("vram, words", [(24e9, r"s per step"), (0.2e9, "does not fit")])
def test_memory_is_planned_for_the_file_that_is_missing(vram, words):
    card = precision.Surroundings(Machine(vram, 64e9))
    stored, small, _ = precision.outlook(ModelSettings(flavour="klein-4b"), None, card)
    assert stored.startswith("as bf16, free: ") and words in small


def test_a_name_that_is_no_file_here_is_told(comfy_folders):
    (line,) = [line for line in lines(flavour="nano", vae="gone.safetensors") if "VAE" in line]
    assert line.startswith("bad: VAE: gone.safetensors is not in models/vae")
    assert Path(folder_paths.get_folder_paths("vae")[0]).is_dir()
