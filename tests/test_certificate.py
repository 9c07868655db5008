"""The certificate: it says 1.00 only of a file that acts like the trained adapter, on every base."""

import comfy.model_management
import pytest
import torch
from safetensors.torch import load_file
from support import FORMATS, adapters_for, problem, tiny_flux2

from flux2_train.adapters import files, write
from flux2_train.errors import UserError
from flux2_train.host import certificate, lora
from flux2_train.host.certificate import TOLERANCE, Case

KINDS = {
    "lora": {},
    "dora": {"dora": True},
    "rslora": {"rslora": True},
    "loha": {"kind": "loha"},
    "lokr": {"kind": "lokr"},
}


def case():
    x, t, conditions, _ = problem(1, dtype=torch.float32)
    return Case(x, t, conditions[0])


def saved(model, adapters, path, **options):
    exported = files.export(adapters.parts(), weights=lora.weights(model), **options)
    return exported, files.save_as(exported, path, {})


def certify(model, adapters, exported, path):
    tolerance = TOLERANCE["bf16"] + exported.error
    with torch.inference_mode():
        return certificate.certify(model, adapters.deltas(), exported.parts, path, case(), tolerance)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_true_copy_is_certified_on_every_base(kind, format, tmp_path):
    model = tiny_flux2(format=format)
    before = {k: v.clone() for k, v in model.model.diffusion_model.state_dict().items()}
    adapters = adapters_for(model, rank=3, **KINDS[kind])
    found = certify(model, adapters, *saved(model, adapters, tmp_path / "a.safetensors"))
    assert found.holds and (found.matched, found.total) == (12, 12)
    activations_too = format in ("int8", "int8_convrot", "convrot_w4a4")
    assert abs(found.effect - 1) < (0.05 if activations_too else 0.01) and found.error < (
        0.3 if activations_too else 0.03
    )
    own = kind == "dora" and format not in ("fp32", "bf16", "fp16")
    assert ("LoRA Apply" in str(found)) == own and str(found).startswith("12/12 keys, effect ")
    after = model.model.diffusion_model.state_dict()
    assert all(torch.equal(after[k].view(torch.uint8), v.view(torch.uint8)) for k, v in before.items() if v.ndim)
    assert not [m for m in model.model.diffusion_model.modules() if m._forward_hooks]


@pytest.mark.parametrize("format", write.FORMATS)
def test_every_export_format_is_certified(format, tmp_path):
    model = tiny_flux2()
    adapters = adapters_for(model, rank=3)
    found = certify(model, adapters, *saved(model, adapters, tmp_path / "a.safetensors", format=format))
    assert found.holds and f"{found.effect:.2f}" == "1.00"


def test_plain_lora_is_certified_within_the_error_it_states(tmp_path):
    model = tiny_flux2()
    adapters = adapters_for(model, rank=4, kind="lokr")
    exported, path = saved(model, adapters, tmp_path / "a.safetensors", format="diffusers", plain_rank=24)
    assert 0.01 < exported.error < 0.9
    assert certify(model, adapters, exported, path).holds
    exported, path = saved(model, adapters, tmp_path / "b.safetensors", format="diffusers", plain_rank=128)
    assert exported.error < 1e-4 and certify(model, adapters, exported, path).holds


def test_what_is_wrong_with_a_file_is_named(tmp_path):
    model = tiny_flux2()
    adapters = adapters_for(model, rank=3)
    exported, path = saved(model, adapters, tmp_path / "a.safetensors")
    tensors = load_file(path)

    def refused(changed):
        files.save(changed, path, {})
        found = certify(model, adapters, exported, path)
        with pytest.raises(UserError) as error:
            certificate.require(found, model, exported.parts, path)
        return str(error.value)

    name = "double_blocks.0.img_mlp.0"
    fewer = {k: v for k, v in tensors.items() if name not in k}
    assert "11/12 keys" in refused(fewer) and f"It lacks 1 layers ({name})" in refused(fewer)
    for factor in (0.95, 1.05, 2):
        stronger = {k: v * factor if "lora_B" in k else v for k, v in tensors.items()}
        assert "12/12 keys, effect " in refused(stronger)
    assert "12 layers in it have other numbers" in refused(stronger)
    assert certify(model, adapters, exported, files.save(tensors, path, {})).holds


def test_an_untrained_adapter_is_certified_as_doing_nothing(tmp_path):
    model = tiny_flux2()
    adapters = adapters_for(model, rank=3)
    with torch.no_grad():
        for name in adapters.names:
            adapters.layer(name).lora_B["default"].weight.zero_()
    exported, path = saved(model, adapters, tmp_path / "a.safetensors")
    assert certify(model, adapters, exported, path).holds
    tensors = {k: v + 0.1 for k, v in load_file(path).items()}
    assert not certify(model, adapters, exported, files.save(tensors, path, {})).holds
    comfy.model_management.load_models_gpu([model])
