"""The MODEL is given back as it was, whatever happens."""

import weakref

import comfy.model_management
import comfy.ops
import comfy.sd
import comfy_extras.nodes_train
import pytest
import torch
from comfy.quant_ops import QuantizedTensor
from support import adapters_for, brief_flux2, loss_of, problem, sdxl, state_dict, tiny_flux1

from flux2_train.errors import UserError
from flux2_train.host import identify
from flux2_train.host.borrowed.borrow import borrow, linears, training_mode
from flux2_train.host.borrowed.velocity import check_embeds
from flux2_train.host.lora import apply as lora
from flux2_train.nano import TRANSFORMER


def snapshot(model):
    return {k: v.clone() for k, v in model.model.diffusion_model.state_dict().items()}


def leftovers(model):
    return [
        n for n, m in model.model.diffusion_model.named_modules() if "forward" in m.__dict__ or m._forward_pre_hooks
    ]


@pytest.mark.parametrize("failure", [None, RuntimeError, comfy.model_management.InterruptProcessingException])
def test_given_back_untouched_on_every_way_out(failure):
    model = brief_flux2()
    before, adapters = snapshot(model), adapters_for(model)
    try:
        with borrow(model, adapters.deltas()) as borrowed:
            assert leftovers(model)
            with training_mode():
                loss_of(borrowed, problem(1, dtype=torch.float32)).backward()
                if failure:
                    raise failure()
    except BaseException as error:
        assert isinstance(error, failure)
    assert not leftovers(model)
    assert comfy.model_management.in_training is False
    assert not model.injections and not model.is_injected
    after = model.model.diffusion_model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert all(not p.requires_grad or p.grad is None for p in model.model.diffusion_model.parameters())


def test_survives_reloading_in_mid_training():
    """ComfyUI ejects and injects again when it loads another clone of the model, as a preview does."""
    model = brief_flux2()
    adapters = adapters_for(model)
    with borrow(model, adapters.deltas()) as borrowed:
        with training_mode():
            before = loss_of(borrowed, problem(1, dtype=torch.float32)).item()
        comfy.model_management.load_models_gpu([model.clone()])
        assert not leftovers(model)
        comfy.model_management.load_models_gpu([borrowed])
        with training_mode():
            assert loss_of(borrowed, problem(1, dtype=torch.float32)).item() == before
    assert not leftovers(model)


def test_refuses_a_model_with_another_packs_bypass_lora_by_name():
    model = brief_flux2()
    weights = state_dict(adapters_for(model))
    bypassed = comfy_extras.nodes_train.LoraModelLoader.execute(model, weights, 1.0, True)[0]
    comfy.model_management.load_models_gpu([bypassed])
    with pytest.raises(UserError, match="already runs .*_attn.* through another node's patch"), borrow(bypassed, {}):
        pass


@pytest.mark.parametrize("mode", [lora.MERGED, lora.BYPASS])
def test_loras_already_on_the_model_stay_in_effect_with_exact_gradients(mode):
    """As if their change stood in the weights themselves."""
    model = brief_flux2()
    weights, adapters = state_dict(adapters_for(model, rank=3), torch.float32), adapters_for(model)

    def trained_on(base):
        with torch.inference_mode():
            base = base()
        with torch.inference_mode(), borrow(base, adapters.deltas()) as borrowed, training_mode():
            loss = loss_of(borrowed, problem(1, dtype=torch.float32))
            return loss.item(), torch.autograd.grad(loss, adapters.trainable())

    def by_hand():
        other = brief_flux2()
        for name, layer in linears(other).items():
            if f"diffusion_model.{name}.lora_A.weight" in weights:
                layer.weight += (
                    weights[f"diffusion_model.{name}.lora_B.weight"] @ weights[f"diffusion_model.{name}.lora_A.weight"]
                )
        return other

    loss, gradients = trained_on(lambda: lora.apply(model, weights, 1.0, mode))
    expected, reference = trained_on(by_hand)
    assert loss == pytest.approx(expected, rel=1e-4)
    assert abs(loss - trained_on(lambda: model)[0]) > 1e-3 * abs(loss)
    for found, wanted in zip(gradients, reference, strict=True):
        assert (found - wanted).norm() <= 1e-4 * wanted.norm()


def test_a_bypass_lora_that_has_painted_a_preview_is_trained_through():
    """What inference mode makes of it may not be saved for backward."""
    model, case = brief_flux2(), problem(1, dtype=torch.float32)
    weights, adapters = state_dict(adapters_for(model, rank=3), torch.float32), adapters_for(model)

    def gradients(paints):
        with torch.inference_mode():
            applied = lora.apply(model, weights, 1.0, lora.BYPASS)
        with torch.inference_mode(), borrow(applied, adapters.deltas()) as borrowed:
            if paints:
                loss_of(borrowed, case)
            with training_mode():
                return torch.autograd.grad(loss_of(borrowed, case), adapters.trainable())

    assert all(torch.equal(a, b) for a, b in zip(gradients(True), gradients(False), strict=True))


def test_unknown_adapter_name_is_refused():
    with pytest.raises(UserError, match="no layers named nowhere"), borrow(brief_flux2(), {"nowhere": lambda x: x}):
        pass


@pytest.mark.parametrize("build, words", [(tiny_flux1, "Flux (flux)"), (sdxl, "SDXL")])
def test_other_models_are_refused_in_one_sentence(build, words):
    with pytest.raises(UserError) as error:
        identify.require_flux2(build())
    message = str(error.value)
    assert words in message and "needs a FLUX.2 model" in message and "Load FLUX.2" in message
    assert "\n" not in message


def test_embeds_of_another_flavour_are_refused():
    with pytest.raises(UserError, match="embeds are 384 wide but this MODEL reads 96"):
        check_embeds(brief_flux2(), torch.zeros(1, 512, 384))


def test_identity_of_a_stock_loaded_model(nano):
    assert identify.flavour_name(nano.model) == "nano"
    assert identify.file_of(nano.model) == TRANSFORMER
    assert identify.flavour_name(brief_flux2()) == "FLUX.2 128/1/2/96"
    assert identify.file_of(brief_flux2()) == ""
    assert identify.distilled_warning(nano.model) == ""


def test_training_on_a_distilled_model_names_the_base_file(nano, monkeypatch):
    from flux2_train.flavours import FLAVOURS

    distilled = nano.model.clone()
    distilled.set_attachments(identify.VARIANT, "distilled")
    monkeypatch.setattr(identify, "sizes", lambda model: FLAVOURS["klein-9b"].sizes)
    assert "Train on flux-2-klein-base-9b.safetensors" in identify.distilled_warning(distilled.clone())


@pytest.mark.long(cases=2)
@pytest.mark.parametrize("format", ["fp32", "bf16", "scaled_fp8_e4m3", "nvfp4_awq"])
@pytest.mark.parametrize("kind", [{}, {"dora": True}], ids=["lora", "dora"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_weights_that_are_gone_right_after_use_change_no_bit(monkeypatch, format, kind, checkpointing):
    """As when evicted and streamed: a fetched weight lies in a buffer that is overwritten once it is given back."""
    model = brief_flux2(format=format)
    adapters, case = adapters_for(model, **kind), problem(2, references=1, dtype=torch.float32)

    arrays = []

    def results():
        with borrow(model, adapters.deltas(), checkpointing) as borrowed, training_mode():
            loss = loss_of(borrowed, case)
            assert not [array for array in arrays if array() is not None]  # nor is one kept until backward
            return [loss.detach(), *torch.autograd.grad(loss, adapters.trainable())]

    expected, buffers = results(), []
    fetch, give_back = comfy.ops.cast_bias_weight, comfy.ops.uncast_bias_weight

    def fetch_into_buffer(*args, **kwargs):
        weight, bias, handle = fetch(*args, **kwargs)
        plain = weight.dequantize() if isinstance(weight, QuantizedTensor) else weight
        array = plain.numpy().copy()
        arrays.append(weakref.ref(array))
        buffers.append((torch.from_numpy(array), weight))
        return buffers[-1][0], bias, handle

    def overwrite(layer, weight, bias, handle):
        if weight is None:  # a norm without a scale
            return
        buffer, original = buffers.pop()
        assert weight is buffer
        buffer.fill_(float("nan"))
        give_back(layer, original, bias, handle)

    monkeypatch.setattr(comfy.ops, "cast_bias_weight", fetch_into_buffer)
    monkeypatch.setattr(comfy.ops, "uncast_bias_weight", overwrite)
    assert all(torch.equal(a, b) for a, b in zip(results(), expected, strict=True))
    assert not buffers  # everything fetched was given back
