"""Text encoders that come in several files."""

import pytest
import torch
from safetensors.torch import save_file
from support import require_precision

from bench.encoding import encode_text
from flux2_train import nano
from flux2_train.errors import UserError
from flux2_train.flavours import FLAVOURS
from flux2_train.host import identify
from flux2_train.host.loading import load, shards


@pytest.fixture
def split(tmp_path):
    weights = nano.text_encoder()
    names = sorted(weights)
    for number in range(3):
        part = {name: weights[name].contiguous() for name in names[number::3]}
        save_file(part, tmp_path / f"text-{number + 1:05d}-of-00003.safetensors")
    save_file(weights, tmp_path / "whole.safetensors")
    return tmp_path


def encoded(path, **how):
    with torch.inference_mode():
        clip = load.load_text_encoder(path, FLAVOURS["nano"], **how)
        return encode_text(clip, "a red cat"), clip


@pytest.mark.long
@pytest.mark.parametrize("number", [1, 3])
def test_the_others_are_found(split, number):
    found, clip = encoded(split / f"text-{number:05d}-of-00003.safetensors")
    assert torch.equal(found, encoded(split / "whole.safetensors")[0])
    assert identify.path_of(clip.patcher).name == "text-00001-of-00003.safetensors"


@pytest.mark.long
def test_they_can_be_quantised_and_kept_as_one_file(split, comfy_folders):
    require_precision("int8")
    first, folder = split / "text-00001-of-00003.safetensors", comfy_folders / "text_encoders" / "flux2_train_quantised"
    expected, others = encoded(split / "whole.safetensors", precision="int8")[0], set(folder.glob("*"))
    assert torch.equal(encoded(first, precision="int8")[0], expected)
    assert torch.equal(encoded(first, precision="int8", keep=True)[0], expected)
    (kept,) = set(folder.glob("text-int8-*.safetensors")) - others
    assert torch.equal(encoded(kept)[0], expected)  # what any loader finds in it
    written = kept.stat().st_mtime_ns
    assert torch.equal(encoded(split / "text-00002-of-00003.safetensors", precision="int8", keep=True)[0], expected)
    assert kept.stat().st_mtime_ns == written


def test_a_missing_part_is_named(split):
    (split / "text-00002-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match="one of 3 parts, but text-00002-of-00003.safetensors is not beside it"):
        encoded(split / "text-00001-of-00003.safetensors")


def test_mistral_without_its_tokenizer_is_refused_by_name(split):
    with pytest.raises(UserError) as error:
        load.load_text_encoder(split / "text-00001-of-00003.safetensors", FLAVOURS["dev"])
    assert "text-00001-of-00003.safetensors holds no tokenizer (tekken_model)" in str(error.value)
    assert "mistral_3_small_flux2_fp8.safetensors" in str(error.value)
    save_file({"tekken_model": torch.zeros(1)}, split / "tokenizer.safetensors")
    shards.require_tokenizer([split / "whole.safetensors", split / "tokenizer.safetensors"], FLAVOURS["dev"])
