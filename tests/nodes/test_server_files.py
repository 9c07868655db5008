"""The whole path in a real server, from Load FLUX.2 to Sampler, on files in the layouts that others publish."""

import json
import shutil

import numpy as np
import pytest
from published import LAYOUTS, Size, write, write_diffusers
from safetensors.torch import load_file
from test_published import _only_what_this_comfyui_has as _only_what_this_comfyui_has
from test_server import picture, sampling_graph, small

from flux2_train import nano
from flux2_train.flavours import LONGEST

pytestmark = [pytest.mark.server, pytest.mark.long]
SIZE = Size(nano.HIDDEN, nano.DOUBLE_BLOCKS, nano.SINGLE_BLOCKS, nano.CONTEXT)
OFTEN = ("bf16", "fp8")  # as Black Forest Labs publish klein; the others run under --all
ALL = [name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow) for name in [*LAYOUTS, "diffusers"]]


@pytest.fixture
def files(server, layout):
    """Names of two files among the server's models: nano's weights in that layout, and what core's loader gets.

    That is the same file, but where core cannot read the layout.
    """
    models = server.folder / "models" / "diffusion_models"
    folder = models / f"published {layout}"
    folder.mkdir(parents=True)
    weights = {name: weight.float() for name, weight in nano.transformer().items()}
    core = path = folder / "model.safetensors"
    write(path, LAYOUTS.get(layout, LAYOUTS["bf16"]), SIZE, weights)
    if layout == "diffusers":
        path = write_diffusers(folder, weights, parts=3)
    yield [str(each.relative_to(models)) for each in (path, core)]
    shutil.rmtree(folder, ignore_errors=True)  # Windows keeps what the server has mapped


def graph(file, cores_file, name):
    """Load, cache, train; sample base and LoRA, by this pack's nodes and by ComfyUI's own loaders.

    The prompt has as many tokens as core's FLUX.2 reads: it fills up shorter texts, which nano does not read from us.
    """
    prompt = small(steps=2, learning_rate=0.02)
    prompt["1"]["inputs"]["transformer"] = file
    prompt["5"]["inputs"].update(name=name, rank=4)
    applied = {"class_type": "Flux2LoraApply", "inputs": {"model": ["1", 0], "lora": ["5", 0], "strength": 1.0,
                                                          "file": "none", "mode": "bypass"}}  # fmt: skip
    prompt = sampling_graph(None, applied) | prompt
    prompt["u"] = {"class_type": "UNETLoader", "inputs": {"unet_name": cores_file, "weight_dtype": "default"}}
    loaded = {"class_type": "LoraModelLoader", "inputs": {"model": ["u", 0], "lora": ["5", 0], "strength_model": 1.0,
                                                         "bypass": True}}  # fmt: skip
    for number in (1, 2):
        prompt[f"s{number}"]["inputs"]["prompt"] = " ".join(["robot"] * LONGEST)
    for number, model in ((3, "u"), (4, "l4")):
        prompt[f"s{number}"] = json.loads(json.dumps(prompt["s1"]))
        prompt[f"s{number}"]["inputs"]["model"] = [model, 0]
        prompt[f"i{number}"] = {"class_type": "PreviewImage", "inputs": {"images": [f"s{number}", 0]}}
    return prompt | {"l4": loaded}


@pytest.mark.parametrize("layout", ALL)
def test_a_published_layout_is_loaded_trained_applied_and_sampled(server, layout, files):
    name = f"on {layout}"
    history = server.run(graph(*files, name))
    assert history["status"]["status_str"] == "success"
    saved = load_file(server.folder / "models" / "loras" / f"{name}.safetensors")
    report = json.loads((server.folder / "output" / "flux2_train" / name / "report.json").read_text())
    assert len(saved) == 56 and report["flavour"] == "nano"
    base, ours, stock_base, stock = (picture(server, history, f"i{number}").astype(int) for number in (1, 2, 3, 4))
    assert np.abs(base - stock_base).max() <= 1 and np.abs(ours - stock).max() <= 1  # one step of 8-bit pixels
    assert np.abs(ours - base).mean() > 1
