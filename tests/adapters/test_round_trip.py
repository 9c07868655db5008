"""What we save acts alike wherever it is loaded, with no key unmatched: stock ComfyUI, diffusers, peft, LoRA Apply.

The expected prediction is the live adapters' on the same base; errors are shares of the adapters' effect. ``EXACT`` is
what fp32 leaves of it: a prediction is rounded a few dozen times to 2^-24 of numbers that are up to a hundred times the
effect. Where a base rounds more than that, what is compared is taken from before it does, or rounded likewise.
"""

import logging

import comfy.model_management
import comfy.sd
import pytest
import torch
from comfy.quant_ops import QuantizedTensor
from support import FORMATS, adapters_for, brief_flux2, by_diffusers, problem, tiny_flux2

from flux2_train.adapters import files, read
from flux2_train.adapters.dora import change
from flux2_train.adapters.parts import mapped
from flux2_train.host.borrowed.borrow import borrow, linears
from flux2_train.host.borrowed.velocity import velocity
from flux2_train.host.lora import apply as lora

PLAIN = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
EXACT = 1e-4
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


def weights_of(model):
    return {name: layer.weight.detach().clone() for name, layer in linears(model).items()}


@pytest.mark.long(cases=12)
@pytest.mark.parametrize("format", ["comfyui", "kohya"])
@pytest.mark.parametrize("base", PLAIN)
@pytest.mark.parametrize("kind", KINDS)
def test_stock_merged_loading_on_plain_bases(kind, base, format, tmp_path, caplog):
    """Every weight is the one with the adapter in it, rounded once to the base's dtype, and it is what acts."""
    if kind == "dora" and format == "kohya":
        pytest.skip("refused at export, see test_formats")
    model, twin = brief_flux2(format=base), brief_flux2(format=base)
    adapters = adapters_for(model, rank=3, **KINDS[kind])
    before = weights_of(model)
    loaded = stock(model, saved(model, adapters, tmp_path, format=format), False, caplog)
    found = predict(loaded)
    for name, part in adapters.parts().items():
        was, now = before[name].double(), linears(model)[name].weight.double()
        wanted = was + change(mapped(part, torch.Tensor.double), was)
        kept = torch.finfo(PLAIN[base])
        half_a_step = kept.eps / 2 * wanted.abs().clamp(min=kept.tiny)
        # after some eight roundings, in fp32, of numbers up to 2
        assert ((now - wanted).abs() <= half_a_step + 1e-6).all() and not torch.equal(now, was), name
    with torch.inference_mode():
        for name, weight in weights_of(model).items():
            linears(twin)[name].weight.copy_(weight)
    assert torch.equal(found, predict(twin))
    if base == "fp32":
        assert effect_error(model, adapters, loaded) < EXACT


def dequantised_product(x, weight, bias):
    plain = (t.dequantize() if isinstance(t, QuantizedTensor) else t for t in (x, weight))
    return torch.nn.functional.linear(*plain, bias)


@pytest.mark.long(cases=21)
@pytest.mark.parametrize("base", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_stock_bypass_and_lora_apply_on_every_base(kind, base, tmp_path, caplog):
    """A base that quantises activations answers the last digit with a whole step: its products are exact here, and
    its own products are looked at layer by layer below."""
    model = brief_flux2(format=base)
    for layer in linears(model).values():
        if isinstance(layer.weight, QuantizedTensor):
            layer._forward = dequantised_product
    adapters = adapters_for(model, rank=3, **KINDS[kind])
    path = saved(model, adapters, tmp_path)
    before, expected = predict(model), live(model, adapters)

    def error(found, expected):
        return ((found - expected).norm() / (expected - before).norm()).item()

    assert error(predict(lora.apply(model, read.load(path), 1.0, lora.BYPASS)), expected) < EXACT
    if kind != "dora":  # which the stock bypass drops
        if base in ("bf16", "fp16"):  # it rounds the file's matrices to the base's own 16 bits
            rounded = {k: v.to(PLAIN[base]).float() for k, v in read.load(path).items()}
            expected = predict(lora.apply(model, rounded, 1.0, lora.BYPASS))
        assert error(predict(stock(model, path, True, caplog)), expected) < EXACT


@pytest.mark.long(cases=6)
@pytest.mark.parametrize("base", ["int8", "int8_convrot", "convrot_w4a4"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_adds_the_same_beside_quantised_activations(kind, base, tmp_path, caplog):
    """From the same input the base's own part is the same to the bit: what is left is what the adapter adds."""
    model = brief_flux2(format=base)
    adapters = adapters_for(model, rank=3, **KINDS[kind])
    path, generator = saved(model, adapters, tmp_path), torch.Generator().manual_seed(0)
    inputs = {name: torch.randn(5, linears(model)[name].in_features, generator=generator) for name in adapters.names}

    def outputs(loaded):
        with torch.inference_mode():
            comfy.model_management.load_models_gpu([loaded])
            return {name: linears(model)[name](x) for name, x in inputs.items()}

    before = outputs(model)
    with torch.inference_mode(), borrow(model, adapters.deltas()):
        expected = {name: linears(model)[name](x) for name, x in inputs.items()}
    ways = [lora.apply(model, read.load(path), 1.0, lora.BYPASS)]
    if kind != "dora":
        ways.append(stock(model, path, True, caplog))
    for loaded in ways:
        for name, found in outputs(loaded).items():
            assert (found - expected[name]).norm() < EXACT * (expected[name] - before[name]).norm(), name


@pytest.mark.parametrize("format", ["kohya", "peft"])
@pytest.mark.parametrize("kind", ["lora", "dora", "loha"])
def test_lora_apply_reads_the_other_formats_alike(kind, format, tmp_path):
    if (kind, format) == ("dora", "kohya"):
        pytest.skip("refused at export, see test_formats")
    model = tiny_flux2(format="scaled_fp8_e4m3")
    adapters = adapters_for(model, rank=3, **KINDS[kind])
    loaded = lora.apply(model, read.load(saved(model, adapters, tmp_path, format=format)), 1.0)
    assert effect_error(model, adapters, loaded) < EXACT


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
        assert (found - expected).norm() < EXACT * (expected - base).norm()
