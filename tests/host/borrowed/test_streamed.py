"""Where streamed weights lie: off the device while they are streamed, pinned, once, and then where they were."""

import comfy.model_management
import pytest
import torch
from delayed import Card
from support import adapters_for, brief_flux2, loss_of, problem

from flux2_train.host.borrowed import streamed
from flux2_train.host.borrowed.borrow import Borrowed, borrow_as, linears, training_mode
from flux2_train.host.loading import deferred
from flux2_train.planning.layout import Layout

ALL = (0, 1, 2)  # blocks of the tiny model


def step(model, adapters, case, how):
    with borrow_as(model, adapters.deltas(), how) as borrowed, training_mode():
        return step_of(borrowed, adapters, case)


def step_of(borrowed, adapters, case):
    loss = loss_of(borrowed, case)
    return [loss.detach(), *torch.autograd.grad(loss, adapters.trainable())]


def same(found, expected):
    return len(found) == len(expected) and all(map(torch.equal, found, expected))


def blocks_of(model):
    """The weights of each block's Linears."""
    found = linears(model)
    blocks = dict.fromkeys(".".join(name.split(".")[:2]) for name in found if "_blocks." in name)
    return [[layer for name, layer in found.items() if name.startswith(f"{block}.")] for block in blocks]


def size(layers):
    return sum(layer.weight.nbytes for layer in layers)


def lying(card, layers):
    return {card.holds(layer.weight) for layer in layers}


def test_weights_leave_the_device_and_come_back_as_the_layout_says():
    """Where nothing else is free: what stays streamed does not come back in between, and nothing is copied twice."""
    model = brief_flux2()
    adapters, case = adapters_for(model), problem(1, dtype=torch.float32)
    expected = step(model, adapters, case, Borrowed(Layout()))
    blocks = blocks_of(model)
    card = Card(layer.weight for layer in linears(model).values())
    how = Borrowed(Layout("off"), card)
    with borrow_as(model, adapters.deltas(), how) as borrowed, training_mode():
        for layout in (
            Layout(streamed=(0,)),
            Layout(streamed=ALL),
            Layout("off", streamed=ALL),
            Layout(streamed=(2,)),
            Layout(),
        ):
            how.lay_out(layout)
            assert [lying(card, block) for block in blocks] == [{n not in layout.streamed} for n in ALL]
            assert card.room == sum(size(blocks[n]) for n in layout.streamed)
            assert same(step_of(borrowed, adapters, case), expected)
        how.lay_out(Layout(streamed=(0, 1)))
    assert card.room == 0 and all(lying(card, block) == {True} for block in blocks)


def test_weights_without_room_on_the_device_stay_where_they_are_and_comfyui_knows():
    model = brief_flux2()
    before = {name: layer.weight.clone() for name, layer in linears(model).items()}
    with torch.inference_mode():
        expected = loss_of(model, problem(1, dtype=torch.float32))
    card = Card(layer.weight for layer in linears(model).values())
    loaded = comfy.model_management.current_loaded_models
    with torch.inference_mode(), borrow_as(model, {}, Borrowed(Layout(streamed=ALL), card)):
        assert any(one.model.model is model.model for one in loaded)
        card.room = size(blocks_of(model)[0])  # something else has taken the rest
    assert card.room < size(blocks_of(model)[0])
    assert not any(one.model.model is model.model for one in loaded if one.model)
    assert all(torch.equal(layer.weight, before[name]) for name, layer in linears(model).items())
    with torch.inference_mode():
        assert torch.equal(loss_of(model, problem(1, dtype=torch.float32)), expected)


@pytest.fixture
def pins(monkeypatch):
    """In the place of CUDA's pinned memory: what is pinned, by its address."""
    held = {}
    monkeypatch.setattr(streamed, "PINNED_FROM", 1)

    def pin(tensor):
        assert not tensor.is_pinned()
        held[tensor.data_ptr()] = tensor
        return True

    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda tensor: tensor.data_ptr() in held)
    monkeypatch.setattr(comfy.model_management, "pin_memory", pin)
    monkeypatch.setattr(comfy.model_management, "unpin_memory", lambda tensor: held.pop(tensor.data_ptr()))
    return held


@pytest.mark.parametrize("format", ["fp32", "int8"])
def test_streamed_weights_are_pinned_where_they_lie(pins, format):
    model = brief_flux2(format=format)
    adapters, case = adapters_for(model), problem(1, dtype=torch.float32)
    expected, how = step(model, adapters, case, Borrowed(Layout())), Borrowed(Layout(streamed=ALL), Card([]))
    lie = {
        tensor.data_ptr() for block in blocks_of(model) for layer in block for tensor in streamed._flat(layer.weight)[0]
    }
    with borrow_as(model, adapters.deltas(), how) as borrowed, training_mode():
        assert pins.keys() == lie and how.unpinned() == 0
        assert same(step_of(borrowed, adapters, case), expected)
        how.lay_out(Layout(streamed=(1,)))
        assert pins.keys() < lie
        how.lay_out(Layout())
        assert not pins
        how.lay_out(Layout(streamed=ALL))
    assert not pins


def test_of_a_mapped_file_copies_are_pinned(pins, monkeypatch):
    """The file's pages are the system's, and it has them back when it needs them; so there is one copy all the same."""
    monkeypatch.setattr(deferred, "mapped", lambda model: True)
    model = brief_flux2()
    adapters, case = adapters_for(model), problem(1, dtype=torch.float32)
    expected = step(model, adapters, case, Borrowed(Layout()))
    lie = {layer.weight.data_ptr() for layer in linears(model).values()}
    with borrow_as(model, adapters.deltas(), Borrowed(Layout(streamed=ALL), Card([]))) as borrowed, training_mode():
        assert len(pins) == sum(map(len, blocks_of(model))) and not pins.keys() & lie
        assert same(step_of(borrowed, adapters, case), expected)
    assert not pins and {layer.weight.data_ptr() for layer in linears(model).values()} == lie


def test_buffers_copies_and_pins_live_as_long_as_the_layout(pins, monkeypatch):
    """Every preview has ComfyUI load the model several times, and others run on its clones."""
    model, pinned = brief_flux2(), []
    pin = comfy.model_management.pin_memory
    monkeypatch.setattr(comfy.model_management, "pin_memory", lambda tensor: pinned.append(tensor) or pin(tensor))
    adapters, case = adapters_for(model), problem(1, dtype=torch.float32)
    expected, how = step(model, adapters, case, Borrowed(Layout())), Borrowed(Layout(streamed=ALL), Card([]))
    with borrow_as(model, adapters.deltas(), how) as borrowed:
        ring, count = how.streamed.ring, len(pinned)
        for other in (borrowed, model.clone(), borrowed):
            comfy.model_management.load_models_gpu([other])
            there = any(streamed.SOURCE in layer.__dict__ for layer in linears(model).values())
            assert there == (other is borrowed)
        assert how.streamed.ring is ring and len(pinned) == count == len(pins)
        with training_mode():
            assert same(step_of(borrowed, adapters, case), expected)
        how.lay_out(Layout(streamed=(1,)))
        assert how.streamed.ring is not ring and len(pins) == len(blocks_of(model)[1])
    assert not pins


def test_what_cannot_be_pinned_is_counted(pins, monkeypatch):
    monkeypatch.setattr(comfy.model_management, "pin_memory", lambda tensor: False)
    model, how = brief_flux2(), Borrowed(Layout(streamed=ALL), Card([]))
    with torch.inference_mode(), borrow_as(model, {}, how):
        assert how.unpinned() == sum(map(size, blocks_of(model)))
    assert how.unpinned() == 0


def test_no_more_is_pinned_than_is_allowed_and_what_others_pinned_stays_pinned(pins):
    model = brief_flux2()
    blocks = blocks_of(model)
    theirs = blocks[0][0].weight
    comfy.model_management.pin_memory(theirs)
    how = Borrowed(Layout(streamed=ALL), Card([]), pinned=float(size(blocks[0]) + size(blocks[2])))
    with torch.inference_mode(), borrow_as(model, {}, how):
        expected = [layer.weight.data_ptr() for n in (0, 1) for layer in blocks[n]]
        assert sorted(pins) == sorted(expected)
        assert how.unpinned() == size(blocks[2])
    assert list(pins) == [theirs.data_ptr()]
