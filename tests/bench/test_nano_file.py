"""nano's own file has the names of the published ones; the file of earlier versions is the same model."""

import re

import comfy.model_management
import pytest
import torch
from published import Size, shapes
from safetensors.torch import save_file
from support import problem

from flux2_train import nano
from flux2_train.flavours import FLAVOURS
from flux2_train.host import describe, identify
from flux2_train.host.borrowed.velocity import velocity
from flux2_train.host.loading import files, load
from flux2_train.settings.model import ModelSettings


@pytest.fixture
def old(tmp_path):
    """As earlier versions of the pack made it, under the same file name."""
    weights = {re.sub(r"_norm\.scale$", "_norm.weight", name): value for name, value in nano.transformer().items()}
    path = tmp_path / nano.TRANSFORMER
    save_file(weights, path, metadata={"format": "pt"})
    return path


def predict(path):
    with torch.inference_mode():
        model = load.load_model(path, ModelSettings("nano"))
        comfy.model_management.load_models_gpu([model])
        return velocity(model, *problem(1, context=nano.CONTEXT, dtype=torch.float32)[:3]).clone(), model


def test_it_has_the_published_names_and_shapes():
    size = Size(nano.HIDDEN, nano.DOUBLE_BLOCKS, nano.SINGLE_BLOCKS, nano.CONTEXT)
    assert {name: tuple(value.shape) for name, value in nano.transformer().items()} == shapes(size)
    assert {value.dtype for value in nano.transformer().values()} == {torch.bfloat16}


def test_the_old_file_is_the_same_model_and_says_the_same_of_itself(old):
    path = files.locate(FLAVOURS["nano"].transformer_files("auto"))
    (found, model), (expected, new) = predict(old), predict(path)
    assert torch.equal(found, expected)
    assert identify.file_of(model) == identify.file_of(new) == path.name  # what LoRAs and runs keep of their base
    assert describe.precision_of(model) == describe.precision_of(new)
