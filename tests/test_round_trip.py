"""What we save acts alike wherever it is loaded, with no key unmatched: stock ComfyUI, diffusers, peft, LoRA Apply.

The expected prediction is the live adapters' on the same base; errors are shares of the adapters' effect.
"""

import logging

import comfy.model_management
import comfy.sd
import pytest
import torch
from support import FORMATS, adapters_for, by_diffusers, problem, tiny_flux2

from flux2_train.adapters import files, read
from flux2_train.host import lora
from flux2_train.host.borrow import borrow
from flux2_train.host.velocity import velocity

PLAIN = ("fp32", "bf16", "fp16")
MERGING_ROUNDS = {"fp32": 1e-4, "bf16": 0.15, "fp16": 0.02}  # to the weights' precision
# There a difference in the last digit of an activation may become one of a whole step.
QUANTISED_ACTIVATIONS = ("int8", "int8_convrot", "convrot_w4a4")
KINDS = {
    "lora": {},
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "loha": {"kind": "loha"},
    "lokr": {"kind": "lokr"},
    "lokr, both decomposed": {"kind": "lokr", "lokr_decompose_both": True, "lokr_factor": 4},
}


def predict(model, load=True):
    with torch.inference_mode():
        if load:
            comfy.model_management.load_models_gpu([model])
        return velocity(model, *problem(1, dtype=torch.float32)[:3]).clone()


def live(model, adapters):
    with torch.inference_mode(), borrow(model, adapters.deltas()) as borrowed:
        return predict(borrowed, load=False)


def saved(model, adapters, tmp_path, **options):
    exported = files.export(adapters.parts(), precision="fp32", weights=lora.weights(model), **options)
    return files.save_as(exported, files.free_path(tmp_path, "a", exported.format), {})


def effect_error(model, adapters, loaded):
    base, expected = predict(model), live(model, adapters)
    return ((predict(loaded) - expected).norm() / (expected - base).norm()).item()


def stock(model, path, bypass, caplog):
    load = comfy.sd.load_bypass_lora_for_models if bypass else comfy.sd.load_lora_for_models
    with caplog.at_level(logging.WARNING), torch.inference_mode():
        loaded, _ = load(model, None, comfy.utils.load_torch_file(str(path)), 1.0, 0.0)
    assert "not loaded" not in caplog.text.lower()
    return loaded


@pytest.mark.parametrize("format", ["comfyui", "kohya"])
@pytest.mark.parametrize("base", PLAIN)
@pytest.mark.parametrize("kind", KINDS)
def test_stock_merged_loading_on_plain_bases(kind, base, format, tmp_path, caplog):
    if kind == "dora" and format == "kohya":
        pytest.skip("refused at export, see test_formats")
    model = tiny_flux2(format=base)
    adapters = adapters_for(model, rank=3, **KINDS[kind])
    loaded = stock(model, saved(model, adapters, tmp_path, format=format), False, caplog)
    assert effect_error(model, adapters, loaded) < MERGING_ROUNDS[base]


@pytest.mark.parametrize("base", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_stock_bypass_and_lora_apply_on_every_base(kind, base, tmp_path, caplog):
    model = tiny_flux2(format=base)
    adapters = adapters_for(model, rank=3, **KINDS[kind])
    path = saved(model, adapters, tmp_path)
    before, expected = predict(model), live(model, adapters)

    def error(loaded):
        return ((predict(loaded) - expected).norm() / (expected - before).norm()).item()

    noise = 0.1 if base in QUANTISED_ACTIVATIONS else 1e-4
    assert error(lora.apply(model, read.load(path), 1.0, lora.BYPASS)) < noise
    if kind != "dora":  # which the stock bypass drops; it rounds the file's matrices to the base's own 16 bits
        assert error(stock(model, path, True, caplog)) < (0.02 if base in PLAIN[1:] else noise)


@pytest.mark.parametrize("format", ["kohya", "peft"])
@pytest.mark.parametrize("kind", ["lora", "dora", "loha"])
def test_lora_apply_reads_the_other_formats_alike(kind, format, tmp_path):
    if (kind, format) == ("dora", "kohya"):
        pytest.skip("refused at export, see test_formats")
    model = tiny_flux2(format="scaled_fp8_e4m3")
    adapters = adapters_for(model, rank=3, **KINDS[kind])
    loaded = lora.apply(model, read.load(saved(model, adapters, tmp_path, format=format)), 1.0)
    assert effect_error(model, adapters, loaded) < 1e-4


def transformer_of(model):
    pytest.importorskip("diffusers", minversion="0.36", reason="diffusers, a development requirement, is missing")
    from bench.as_diffusers import diffusers_transformer

    with torch.inference_mode(False):
        weights = {k: v.clone() for k, v in model.model.diffusion_model.state_dict().items()}
    return diffusers_transformer(weights)


def diffusers_error(model, adapters, transformer):
    found = by_diffusers(transformer, *problem(1, dtype=torch.float32)[:3])
    base, expected = predict(model), live(model, adapters)
    return ((found - expected).norm() / (expected - base).norm()).item()


@pytest.mark.parametrize("format", ["comfyui", "diffusers", "kohya"])
@pytest.mark.parametrize("kind", ["lora", "rslora"])
def test_diffusers_own_loader(kind, format, tmp_path):
    model = tiny_flux2()
    adapters = adapters_for(model, rank=3, **KINDS[kind])
    transformer = transformer_of(model)
    from diffusers.loaders import Flux2LoraLoaderMixin as Loader

    state, metadata = Loader.lora_state_dict(
        saved(model, adapters, tmp_path, format=format).parent,
        weight_name=f"a{'.safetensors'}", local_files_only=True, return_lora_metadata=True,
    )  # fmt: skip
    Loader.load_lora_into_transformer(state, transformer, metadata=metadata)
    assert len({k.rpartition(".lora_")[0] for k in state}) == 12 + 4  # both qkv in three
    assert diffusers_error(model, adapters, transformer) < 1e-3


@pytest.mark.parametrize("kind", ["lora", "dora", "loha"])
def test_pefts_own_loader_on_diffusers(kind, tmp_path):
    import peft

    model = tiny_flux2()
    adapters = adapters_for(model, rank=3, **KINDS[kind])
    path = saved(model, adapters, tmp_path, format="peft")
    loaded = peft.PeftModel.from_pretrained(transformer_of(model), path.parent)
    assert diffusers_error(model, adapters, loaded) < 1e-3


def test_diffusers_and_simpletuners_own_files(tmp_path):
    """Written by diffusers' own saving function from peft's own layers, alpha in the header only."""
    import peft
    from diffusers import Flux2Pipeline

    model = tiny_flux2()
    transformer = transformer_of(model)
    config = peft.LoraConfig(r=4, lora_alpha=9, target_modules=["to_q", "to_v", "add_k_proj", "to_qkv_mlp_proj"])
    transformer.add_adapter(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    layers = peft.get_peft_model_state_dict(transformer)
    settings = {k: list(v) if isinstance(v, set) else v for k, v in config.to_dict().items()}
    Flux2Pipeline.save_lora_weights(tmp_path, layers, transformer_lora_adapter_metadata=settings)
    weights = read.load(tmp_path / "pytorch_lora_weights.safetensors")
    expected = by_diffusers(transformer, *problem(1, dtype=torch.float32)[:3])
    base = predict(model)
    for mode in (lora.MERGED, lora.BYPASS):
        found = predict(lora.apply(model, weights, 1.0, mode))
        assert (found - expected).norm() < 1e-3 * (expected - base).norm()


def test_comfyuis_own_trainers_layers(tmp_path):
    """Its down and up with a scalar alpha, for every layer outside the blocks as well."""
    from comfy.weight_adapter.lora import LoRAAdapter

    model, tensors = tiny_flux2(), {}
    for name, (into, out) in lora.sizes(model).items():
        trained = LoRAAdapter.create_train(torch.empty(out, into), rank=4, alpha=1.0)
        torch.nn.init.normal_(trained.lora_down.weight, std=0.3)
        tensors |= {f"diffusion_model.{name}.{k}": v.detach().clone() for k, v in trained.state_dict().items()}
    base = predict(model)
    expected = predict(comfy.sd.load_lora_for_models(model, None, tensors, 1.0, 0.0)[0])
    for mode in (lora.MERGED, lora.BYPASS):
        found = predict(lora.apply(model, tensors, 1.0, mode))
        assert (found - expected).norm() < 1e-4 * (expected - base).norm()
