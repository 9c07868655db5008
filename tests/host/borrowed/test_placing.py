"""Where weights lie on a device without dynamic VRAM: what is not streamed on it, what is streamed off it.

On a CPU there is nothing to place; test_other_device.py runs this where there is.
"""

import comfy.model_management
import pytest
import torch
from support import adapters_for, brief_flux2, loss_of, problem, state_dict

from flux2_train.host.borrowed import streamed
from flux2_train.host.borrowed.borrow import Borrowed, borrow_as, linears, training_mode
from flux2_train.host.lora import apply as lora
from flux2_train.planning.layout import Layout

pytestmark = pytest.mark.skipif(
    comfy.model_management.get_torch_device().type == "cpu", reason="test_other_device.py runs this on a device"
)
ROOM = 1000.0  # bytes that training is said to need
ALL = tuple(range(5))


@pytest.fixture
def free(monkeypatch):
    """Sets how many bytes the device has beside what ComfyUI keeps for itself; weights of a model take theirs."""

    def set_free(model, size):
        total = comfy.model_management.minimum_inference_memory() + size

        def mem_get_info(device):
            parameters = model.model.parameters()
            return int(total - sum(p.nbytes for p in parameters if p.device.type != "cpu")), int(total)

        monkeypatch.setattr(torch.npu, "mem_get_info", mem_get_info)

    return set_free


def blocks_of(model):
    """The Linears of each block."""
    found = linears(model)
    names = dict.fromkeys(".".join(name.split(".")[:2]) for name in found if "_blocks." in name)
    return [[layer for name, layer in found.items() if name.startswith(f"{block}.")] for block in names]


def size(layers):
    return sum(layer.weight.nbytes for layer in layers)


def on_device(layers):
    return {layer.weight.device.type != "cpu" for layer in layers}


def check_places(model, away):
    assert [on_device(block) for block in blocks_of(model)] == [{n not in away} for n in ALL]
    assert on_device(layer for name, layer in linears(model).items() if "_blocks." not in name) == {True}
    streamed_bytes = sum(size(blocks_of(model)[n]) for n in away)
    assert model.loaded_size() <= model.model_size() - streamed_bytes


def step(model, adapters, how, room=ROOM, see=lambda: None):
    with torch.inference_mode(), borrow_as(model, adapters.deltas(), how, room) as borrowed, training_mode():
        see()
        return step_of(borrowed, adapters)


def step_of(borrowed, adapters):
    loss = loss_of(borrowed, problem(1, dtype=torch.float32))
    return [loss.detach(), *torch.autograd.grad(loss, adapters.trainable())]


def same(found, expected):
    return len(found) == len(expected) and all(map(torch.equal, found, expected))


def test_all_that_is_not_streamed_is_loaded_although_comfyui_would_keep_more_free(free):
    """ComfyUI's own estimate leaves room for a quarter of the weights and loads the largest, streamed or not."""
    model = brief_flux2(single=4)
    adapters = adapters_for(model)
    expected = step(model, adapters, Borrowed(Layout()))
    comfy.model_management.unload_all_models()
    free(model, model.model_size() // 4)
    layout = Layout(streamed=(0, 2))
    assert same(step(model, adapters, Borrowed(layout), see=lambda: check_places(model, layout.streamed)), expected)
    comfy.model_management.unload_all_models()
    assert same(step(model, adapters, Borrowed(Layout()), see=lambda: check_places(model, ())), expected)


def test_what_does_not_fit_is_left_to_comfyui(free):
    model = brief_flux2(single=4)
    adapters = adapters_for(model)
    expected = step(model, adapters, Borrowed(Layout()))
    comfy.model_management.unload_all_models()
    free(model, model.model_size() // 4)
    resident = []

    def see():
        resident.append(model.loaded_size())
        assert on_device(blocks_of(model)[0]) == {False}

    assert same(step(model, adapters, Borrowed(Layout(streamed=(0,))), 1e12, see), expected)
    assert resident[0] < model.model_size() - size(blocks_of(model)[0])


def test_weights_follow_the_layout_and_come_back():
    model = brief_flux2(single=4)
    adapters, how = adapters_for(model), Borrowed(Layout("off"))
    expected = step(model, adapters, how)
    check_places(model, ())
    with torch.inference_mode(), borrow_as(model, adapters.deltas(), how, ROOM) as borrowed, training_mode():
        for layout in (Layout(streamed=(1, 3)), Layout(streamed=ALL), Layout("off", streamed=(0, 4)), Layout()):
            how.lay_out(layout)
            check_places(model, layout.streamed)
            assert same(step_of(borrowed, adapters), expected)
        how.lay_out(Layout(streamed=ALL))
    check_places(model, ())  # as it was before


def test_a_model_that_was_not_loaded_is_left_where_it_is():
    model = brief_flux2(single=4)
    with torch.inference_mode(), borrow_as(model, {}, Borrowed(Layout(streamed=ALL)), ROOM):
        check_places(model, ALL)
    assert all(on_device(block) == {False} for block in blocks_of(model))
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([model])
    check_places(model, ())
    assert not any(hasattr(layer, "prev_comfy_cast_weights") for layer in linears(model).values())


def test_another_clone_of_the_model_runs_in_between():
    """It finds streamed layers as ComfyUI's own offloaded ones, and may load them."""
    model = brief_flux2(single=4)
    adapters, layout = adapters_for(model), Layout(streamed=(0, 3))
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([model])
        painted = loss_of(model, problem(1, dtype=torch.float32))
    how = Borrowed(layout)
    expected = step(model, adapters, how)
    with torch.inference_mode(), borrow_as(model, adapters.deltas(), how, ROOM) as borrowed:
        ring, other = how.streamed.ring, model.clone()
        comfy.model_management.load_models_gpu([other])
        assert not any(streamed.SOURCE in layer.__dict__ for layer in linears(model).values())
        assert torch.equal(loss_of(other, problem(1, dtype=torch.float32)), painted)
        comfy.model_management.load_models_gpu([borrowed], memory_required=ROOM)
        check_places(model, layout.streamed)
        assert how.streamed.ring is ring
        with training_mode():
            assert same(step_of(borrowed, adapters), expected)


def test_a_lora_on_the_model_acts_once_on_streamed_layers():
    """Resident layers have it merged; ComfyUI adds it to offloaded ones when they are used."""
    base = brief_flux2(single=4)
    weights = state_dict(adapters_for(base, rank=3), torch.float32)
    adapters = adapters_for(base)
    with torch.inference_mode():
        model = lora.apply(base, weights, 1.0, lora.MERGED)
        comfy.model_management.load_models_gpu([model])
    expected = step(model, adapters, Borrowed(Layout()))
    plain = step(base, adapters, Borrowed(Layout()))
    found = step(model, adapters, Borrowed(Layout(streamed=ALL)), see=lambda: check_places(model, ALL))
    for ours, theirs, without in zip(found, expected, plain, strict=True):
        assert (ours - theirs).norm() <= 0.02 * (theirs - without).norm()  # ComfyUI adds it in fp16


def test_a_mapped_model_that_is_loaded_gives_up_what_it_streams(nano):
    how = Borrowed(Layout(streamed=(0, 1)))
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([nano.model])
        with borrow_as(nano.model, {}, how, ROOM):
            there = [on_device(block) for block in blocks_of(nano.model)]
            assert there[:2] == [{False}] * 2 and set(map(frozenset, there[2:])) == {frozenset({True})}
