"""The engine beside others: ComfyUI's flags and memory, other packs' layers, patches and attention, and every way out.

Without a GPU there is neither dynamic VRAM nor ``--lowvram``: what is tested then is that training is exact under the
flags that can be given, not where the weights lie.
"""

import gc
import json
import os
import sys
import types
from pathlib import Path

import comfy.ldm.modules.attention
import comfy.model_management
import comfy.ops
import forks
import other_device
import pytest
import torch
from support import adapters_for, brief_flux2, loss_of, problem

from flux2_train.errors import UserError
from flux2_train.host.borrowed.borrow import Borrowed, borrow, borrow_as, linears, training_mode
from flux2_train.planning.layout import OFF, Layout

ROOT = Path(__file__).resolve().parents[3]
CASE = problem(1, dtype=torch.float32)


def gradients(model, adapters, checkpointing=True):
    """(loss, gradients of the adapters), in the mode in which a node runs."""
    with torch.inference_mode(), borrow(model, adapters.deltas(), checkpointing) as borrowed, training_mode():
        loss = loss_of(borrowed, CASE)
        return loss.item(), torch.autograd.grad(loss, adapters.trainable())


def same(found, expected):
    return found[0] == expected[0] and all(torch.equal(a, b) for a, b in zip(found[1], expected[1], strict=True))


def replaced(model):
    """Layers whose forward is not their class's; core's bypass puts that back as an attribute."""
    found = [(m, m.__dict__["forward"]) for m in model.model.diffusion_model.modules() if "forward" in m.__dict__]
    return [m for m, forward in found if getattr(forward, "__func__", None) is not type(m).forward]


@pytest.fixture(scope="module")
def expected():
    model = brief_flux2()
    return gradients(model, adapters_for(model))


def comfyui_modules():
    roots = ("comfy", "comfy_extras", "comfy_api", "comfy_execution", "nodes", "execution", "folder_paths")
    return {n: m for n, m in sys.modules.items() if n.split(".")[0] in roots and isinstance(m, types.ModuleType)}


def attributes_of_comfyui():
    """Every function, class, flag and method of ComfyUI by name: what a monkey patch would change."""
    found = {}
    for name, module in comfyui_modules().items():
        for key, value in vars(module).items():
            if isinstance(value, type) and value.__module__ == name:
                found |= {(name, key, k): id(v) for k, v in vars(value).items() if callable(v)}
            if callable(value) or isinstance(value, (bool, int, float, str, type(None))):
                found[name, key] = id(value)
    return found


def state_of(model):
    """All that a training run could leave on a MODEL, weights bit by bit included."""
    core = model.model
    weights = {name: (value.data_ptr(), value.clone()) for name, value in core.state_dict().items()}
    attributes = {
        name: {k: id(v) for k, v in vars(module).items() if k not in ("current_weight_patches_uuid",)}
        for name, module in core.diffusion_model.named_modules()
    }
    hooks = {
        (name, kind): dict(getattr(module, kind))
        for name, module in core.diffusion_model.named_modules()
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    }
    flags = {name: (p.requires_grad, p.grad) for name, p in core.named_parameters()}
    patcher = (
        model.injections,
        model.wrappers,
        model.callbacks,
        model.patches,
        model.object_patches,
        model.attachments,
    )
    return weights, attributes, hooks, flags, [list(part) for part in patcher]


def assert_same_state(before, after):
    assert before[0].keys() == after[0].keys()
    for name, (place, value) in before[0].items():
        assert after[0][name][0] == place and torch.equal(after[0][name][1], value), name
    assert before[1:] == after[1:]


def interrupt(x, y, base):
    raise comfy.model_management.InterruptProcessingException


def fail(x, y, base):
    raise ValueError("a layer failed")


def exhaust(x, y, base):
    return torch.empty(2**58)


ENDINGS = {"done": None, "exception": fail, "cancel": interrupt, "out of memory": exhaust}


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_everything_is_as_before_on_every_way_out(ending, where):
    model = brief_flux2()
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([model])  # so that what loading itself does is not counted
    adapters = adapters_for(model)
    deltas, plain = adapters.deltas(), adapters.deltas()["single_blocks.1.linear1"]
    if ENDINGS[ending]:
        calls = []

        def delta(x, y, base):  # checkpointing runs it a second time in backward
            calls.append(torch.is_grad_enabled())
            return ENDINGS[ending](x, y, base) if len(calls) == (1 if where == "forward" else 2) else plain(x, y, base)

        deltas["single_blocks.1.linear1"] = delta
    before, comfyui, grads = state_of(model), attributes_of_comfyui(), torch.is_grad_enabled()
    raised = None
    try:
        with torch.inference_mode(), borrow(model, deltas) as borrowed, training_mode():
            loss_of(borrowed, CASE).backward()
    except BaseException as error:  # Cancel is one
        raised = error
    kinds = {"done": type(None), "exception": ValueError, "out of memory": RuntimeError}
    assert isinstance(raised, kinds.get(ending, comfy.model_management.InterruptProcessingException))
    del raised, borrowed
    assert_same_state(before, state_of(model))
    assert comfyui == attributes_of_comfyui()
    assert comfy.model_management.in_training is False
    assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == (grads, False)


def test_trains_exactly_the_same_after_a_cancel(expected):
    model = brief_flux2()
    adapters = adapters_for(model)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        gradients(model, types.SimpleNamespace(deltas=lambda: {"single_blocks.0.linear1": interrupt}))
    assert same(gradients(model, adapters), expected)


def test_memory_is_comfyuis_again_and_other_models_return():
    """The trained model is in ComfyUI's list under the user's MODEL, evictable; others are evicted and return."""
    model, other = brief_flux2(), brief_flux2(guidance=True)
    adapters = adapters_for(model)
    manage = comfy.model_management
    with torch.inference_mode():
        manage.unload_all_models()
        manage.load_models_gpu([other])
        gradients(model, adapters)
        gc.collect()
        listed = [loaded.model for loaded in manage.current_loaded_models]
        assert [m for m in listed if m is not None and m.is_clone(model)] == [model]
        manage.free_memory(1e30, model.load_device)  # what ComfyUI does when the next model needs the room
        assert manage.current_loaded_models == []
        manage.load_models_gpu([other])
        assert [loaded.model for loaded in manage.current_loaded_models] == [other]
        manage.unload_all_models()


def test_room_that_training_needs_is_asked_of_comfyui(monkeypatch):
    """It evicts others for it, but on a CPU, where it evicts nobody, that it is asked is all there is to see."""
    model, asked, load = brief_flux2(), [], comfy.model_management.load_models_gpu

    def asking(models, **how):
        asked.append((models, how))
        return load(models, **how)

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", asking)
    with torch.inference_mode(), borrow_as(model, {}, Borrowed(Layout(OFF)), memory_required=3e9) as borrowed:
        assert asked == [([borrowed], {"memory_required": 3e9})]


def test_attention_without_a_gradient_does_no_harm(expected):
    """As --use-sage-attention is: the user's override, and core's own choice, both of an op that has no gradient."""

    def forward_only(function, *args, **kwargs):
        with torch.no_grad():
            return comfy.ldm.modules.attention.attention_pytorch(*args, **kwargs).detach()

    model = brief_flux2()
    chosen = model.clone()
    chosen.model_options["transformer_options"] = {"optimized_attention_override": forward_only}
    adapters = adapters_for(model)
    assert same(gradients(chosen, adapters), expected)
    assert chosen.model_options["transformer_options"]["optimized_attention_override"] is forward_only


def test_cores_choice_of_attention_does_no_harm(expected, monkeypatch):
    import comfy.ldm.flux.math as flux_math

    @comfy.ldm.modules.attention.wrap_attn
    def attention_without_gradient(*args, **kwargs):
        with torch.no_grad():
            return comfy.ldm.modules.attention.attention_basic(*args, **kwargs).detach()

    monkeypatch.setattr(flux_math, "optimized_attention", attention_without_gradient)
    model = brief_flux2()
    assert same(gradients(model, adapters_for(model)), expected)


@pytest.mark.long
@pytest.mark.parametrize("flag", ["--fast", "--disable-dynamic-vram", "--lowvram", "--novram"])
def test_exact_under_the_flags_of_comfyui(flag, expected):
    elsewhere = flag in ("--lowvram", "--novram") and not torch.cuda.is_available()  # ComfyUI refuses them with --cpu
    if elsewhere:
        other_device.require_buildable()
    flags = [flag, *(["--force-fp32"] if elsewhere else [])]  # a device would compute in bf16
    code = f"""
import sys, json
from contextlib import nullcontext
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(ROOT / "tests" / "helpers")!r}, {str(ROOT)!r}]
import other_device
from flux2_train.host.system.bootstrap import import_comfyui
with other_device.installed() if {elsewhere} else nullcontext():
    import_comfyui(*{flags})
import comfy.cli_args, torch
torch.set_num_threads({torch.get_num_threads()})
from support import adapters_for, brief_flux2
from test_neighbour import gradients
model = brief_flux2()
loss, grads = gradients(model, adapters_for(model))
flag = getattr(comfy.cli_args.args, {flag.removeprefix("--").replace("-", "_")!r}, None)
print(json.dumps([bool(flag), loss, [g.double().norm().item() for g in grads]]))
"""
    done = forks.run(["-c", code], dict(os.environ), ROOT)
    if "unrecognized arguments" in done.stderr:
        pytest.skip(f"this ComfyUI has no {flag}")
    assert done.returncode == 0, done.stderr
    was_set, loss, norms = json.loads(done.stdout.splitlines()[-1])
    assert was_set
    rounding = 1e-5 if elsewhere else 1e-6  # that device has no attention but torch's plain one
    assert loss == pytest.approx(expected[0], rel=rounding)
    assert norms == pytest.approx([g.double().norm().item() for g in expected[1]], rel=1e-5)


class PackedLinear(comfy.ops.manual_cast.Linear):
    """A Linear as GGUF packs make them: bytes as its weight, cast by the layer itself."""

    def cast_packed(self, dtype, device):
        low, step = self.range
        weight = (self.weight.to(device).to(torch.float32) * step + low).to(dtype)
        return weight.reshape(self.out_features, self.in_features)

    def forward_comfy_cast_weights(self, x):
        return torch.nn.functional.linear(x, self.cast_packed(x.dtype, x.device), None)

    forward = forward_comfy_cast_weights


def packed(model):
    """The MODEL with its blocks' Linears as PackedLinear, of another shape than a weight has; and its plain twin."""
    plain = brief_flux2()
    with torch.inference_mode():
        for name, layer in linears(model).items():
            if "_blocks." not in name:
                continue
            low, high = layer.weight.aminmax()
            step = (high - low).item() / 255
            data = ((layer.weight - low) / step).round().to(torch.uint8).flatten()
            twin = PackedLinear(layer.in_features, layer.out_features, bias=False, device="meta")
            twin.weight, twin.range = torch.nn.Parameter(data, requires_grad=False), (low.item(), step)
            comfy.utils.set_attr(model.model.diffusion_model, name, twin)
            linears(plain)[name].weight.copy_(twin.cast_packed(torch.float32, "cpu"))
    return model, plain


@pytest.mark.parametrize("kind", [{}, {"dora": True}], ids=["lora", "dora"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_layers_that_cast_their_own_packed_weights_have_exact_gradients(checkpointing, kind):
    model, plain = packed(brief_flux2())
    adapters = adapters_for(plain, **kind)
    found, wanted = gradients(model, adapters, checkpointing), gradients(plain, adapters, checkpointing)
    assert found[0] == pytest.approx(wanted[0], rel=1e-6)
    for a, b in zip(found[1], wanted[1], strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()
    assert not replaced(model)


def test_layers_with_a_kernel_of_their_own_are_refused_by_class():
    class KernelLinear(PackedLinear):
        def forward(self, x):
            return x @ self.cast_packed(x.dtype, x.device).T

    model, _ = packed(brief_flux2())
    for layer in linears(model).values():
        if isinstance(layer, PackedLinear):
            layer.__class__ = KernelLinear
    with pytest.raises(UserError, match=r"layers are of .*KernelLinear, .* load the model in another format"):
        gradients(model, types.SimpleNamespace(deltas=dict))
