"""The certificate: it says 1.00 only of a file that acts like the trained adapter, on every base."""

import pytest
import torch
from safetensors.torch import load_file
from support import FORMATS, adapters_for, brief_flux2, problem

from flux2_train.adapters import files, write
from flux2_train.adapters.parts import LowRank, mapped
from flux2_train.errors import UserError
from flux2_train.host.lora import apply as lora
from flux2_train.host.lora import certificate
from flux2_train.host.lora.certificate import Probe

KINDS = {
    "lora": {},
    "dora": {"dora": True},
    "rslora": {"rslora": True},
    "loha": {"kind": "loha"},
    "lokr": {"kind": "lokr"},
}


def probe():
    x, t, conditions, _ = problem(1, dtype=torch.float32)
    return Probe(x, t, conditions[0])


def saved(model, adapters, path, **options):
    exported = files.export(adapters.parts(), weights=lora.weights(model), **options)
    return exported, files.save_as(exported, path, {})


def certify(model, adapters, exported, path, precision="bf16"):
    with torch.inference_mode():
        return certificate.certify(model, adapters.deltas(), exported.parts, path, probe(), precision)


@pytest.mark.drawn
@pytest.mark.long(cases=12)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_true_copy_is_certified_on_every_base(kind, format, tmp_path):
    model = brief_flux2(format=format)
    before = {k: v.clone() for k, v in model.model.diffusion_model.state_dict().items()}
    adapters = adapters_for(model, rank=3, **KINDS[kind])
    found = certify(model, adapters, *saved(model, adapters, tmp_path / "a.safetensors"))
    assert found.holds and str(found).endswith("all 12 layers, 100% of the trained strength")
    rounded = (4 if kind in ("loha", "lokr") else 2) * 2**-8  # as many factors, each rounded to bf16's 8 digits
    assert found.tolerance <= rounded + 1e-3
    own = kind == "dora" and format not in ("fp32", "bf16", "fp16")
    assert ("LoRA Apply" in str(found)) == own
    after = model.model.diffusion_model.state_dict()
    assert all(torch.equal(after[k].view(torch.uint8), v.view(torch.uint8)) for k, v in before.items() if v.ndim)
    assert not [m for m in model.model.diffusion_model.modules() if m._forward_hooks]


@pytest.mark.drawn
@pytest.mark.parametrize("precision", write.DTYPES)
@pytest.mark.parametrize("format", write.FORMATS)
def test_every_export_format_and_precision_is_certified(format, precision, tmp_path):
    model = brief_flux2()
    adapters = adapters_for(model, rank=3)
    exported, path = saved(model, adapters, tmp_path / "a.safetensors", format=format, precision=precision)
    found = certify(model, adapters, exported, path, precision)
    assert found.holds and f"{found.effect:.2f}" == "1.00"
    assert found.error > 0 or precision == "fp32"


@pytest.mark.parametrize("base", ["fp32", "scaled_fp8_e4m3", "convrot_w4a4"])
def test_what_is_wrong_with_a_file_is_named(base, tmp_path):
    model = brief_flux2(format=base)
    adapters = adapters_for(model, rank=3)
    exported, path = saved(model, adapters, tmp_path / "a.safetensors")
    tensors = load_file(path)

    def refused(changed):
        files.save(changed, path, {})
        found = certify(model, adapters, exported, path)
        with pytest.raises(UserError, match="does not act like the adapter") as error:
            certificate.require(found, model, exported.parts, path)
        return str(error.value)

    name = "double_blocks.0.img_mlp.0"
    fewer = {k: v for k, v in tensors.items() if name not in k}
    assert "11 of 12 layers" in refused(fewer) and f"It lacks 1 layer ({name})" in refused(fewer)
    for factor in (0.98, 1.02, 2):  # as a wrong alpha does
        stronger = {k: v * factor if "lora_B" in k else v for k, v in tensors.items()}
        assert f"all 12 layers, {factor:.0%} of the trained strength" in refused(stronger)
    assert "12 layers in it have other numbers" in refused(stronger)
    one = f"diffusion_model.{name}.lora_B.weight"
    assert f"at {name}, where rounding explains 0.9%" in refused(
        tensors | {one: tensors[one] * 1.02}
    )  # one of twelve layers
    fused = "diffusion_model.double_blocks.0.txt_attn.qkv.lora_B.weight"
    q, k, v = tensors[fused].chunk(3)
    assert "at double_blocks.0.txt_attn.qkv, where" in refused(tensors | {fused: torch.cat([q, v, k])})
    beside = tensors[one] + tensors[one].roll(1, 0)  # all that it should add, and something else
    assert f"1 layer in it has other numbers ({name})" in refused(tensors | {one: beside})
    assert certify(model, adapters, exported, files.save(tensors, path, {})).holds


def test_more_rounding_is_allowed_where_terms_cancel_and_no_more():
    """As for inputs that are nearly orthogonal to a low rank, which padding may be."""
    generator = torch.Generator().manual_seed(0)
    down, up, x = (torch.randn(*size, generator=generator) for size in ((2, 64), (32, 2), (7, 64)))
    away = x - 0.97 * x @ torch.linalg.pinv(down) @ down
    part, roundoff = LowRank(down, up), certificate.ROUNDOFF["bf16"]
    for inputs, cancels in ((x, False), (away, True)):
        rounded = mapped(part, lambda tensor: tensor.bfloat16().float())
        error = ((rounded(inputs) - part(inputs)).norm() / part(inputs).norm()).item()
        assert (error > 2 * roundoff + certificate.ARITHMETIC) == cancels
        assert error < certificate._rounding(part, inputs, "bf16") < 3 * error


def test_small_updates_of_a_bf16_file_may_be_lost_in_rounding():
    """Adam's updates of a row have nearly one size and point along the inputs, so what is lost of them adds up."""
    generator = torch.Generator().manual_seed(0)
    down, up = (torch.randn(*size, generator=generator).bfloat16().float() for size in ((4, 1024), (32, 4)))
    inputs = torch.randn(1, 1024, generator=generator) + 0.1 * torch.randn(7, 1024, generator=generator)
    file, live = LowRank(down, up), LowRank(down + 1e-3 * down.abs() * inputs[:1].sign(), up)
    assert torch.equal(live.down.bfloat16().float(), file.down)
    error = ((file(inputs) - live(inputs)).norm() / live(inputs).norm()).item()
    assert error > 2 * certificate.ROUNDOFF["bf16"] + certificate.ARITHMETIC
    assert abs(certificate._rounding(live, inputs, "bf16") - error) < certificate.ARITHMETIC


def test_an_untrained_adapter_is_certified_as_doing_nothing(tmp_path):
    model = brief_flux2()
    adapters = adapters_for(model, rank=3)
    with torch.no_grad():
        for name in adapters.names:
            adapters.layer(name).lora_B["default"].weight.zero_()
    exported, path = saved(model, adapters, tmp_path / "a.safetensors")
    assert certify(model, adapters, exported, path).holds
    tensors = {k: v + 0.1 for k, v in load_file(path).items()}
    assert not certify(model, adapters, exported, files.save(tensors, path, {})).holds
