"""Activations in host memory: who holds them, and in which order they come back."""

import gc
from weakref import ref

import pytest
import torch

from flux2_train.streaming import saved_tensors as offload


class Noted(offload._Kept):
    """Notes what is saved and what is asked for."""

    saved: list = []
    asked: list = []

    def __init__(self, tensor, way):
        super().__init__(tensor, way)
        self.number = len(self.saved)
        self.saved.append(ref(self))

    def tensor(self):
        self.asked.append(self.number)
        return super().tensor()


@pytest.fixture
def noted(monkeypatch):
    monkeypatch.setattr(offload, "_Kept", Noted)
    monkeypatch.setattr(Noted, "saved", [])
    monkeypatch.setattr(Noted, "asked", [])
    return Noted


def forward(x, layers=4):
    with offload.offloaded():
        for _ in range(layers):
            x = x.sin()
    return x.sum()


def alive():
    gc.collect()
    return sum(kept() is not None for kept in Noted.saved)


def test_backward_asks_in_reverse_and_leaves_nothing(noted):
    x = torch.randn(8, requires_grad=True)
    forward(x).backward()
    y = x.detach().requires_grad_()
    y.sin().sin().sin().sin().sum().backward()
    assert torch.equal(x.grad, y.grad)
    assert noted.asked == [3, 2, 1, 0]
    assert alive() == 0


def test_a_step_that_broke_off_holds_no_host_memory(noted):
    """Out of memory in forward: its graph goes, and so does what it has saved, before the step is tried again."""
    loss = forward(torch.randn(8, requires_grad=True))
    assert alive() == 4
    del loss
    assert alive() == 0


def test_the_step_after_one_that_broke_off_is_right(noted):
    broken = forward(torch.randn(8, requires_grad=True))
    x = torch.randn(8, requires_grad=True)
    loss = forward(x, layers=1)
    del broken
    loss.backward()
    assert torch.equal(x.grad, x.detach().cos())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_activations_come_back_in_the_dtype_they_had(dtype):
    x = torch.randn(8).to(dtype).requires_grad_()
    y = x.detach().clone().requires_grad_()
    forward(x).backward()
    y.sin().sin().sin().sin().sum().backward()
    assert x.grad.dtype == dtype and torch.equal(x.grad, y.grad)


def test_a_device_has_one_stream_for_all_that_is_saved(monkeypatch):
    made = []

    class Channel(offload._Channel):
        def __init__(self, device):
            made.append(device)
            super().__init__(device)

    monkeypatch.setattr(offload, "_Channel", Channel)
    monkeypatch.setattr(offload, "_channels", {})
    forward(torch.randn(8, requires_grad=True)).backward()
    assert len(made) == 1
