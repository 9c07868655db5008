"""The choice among attention's kernels: right ones with a gradient, once for each shape, the same after a resume."""

# ruff: noqa: F401, F811 - pytest finds fixtures by the names that are imported, and gives them as arguments

import time
from contextlib import closing
from dataclasses import replace

import pytest
import torch
from resuming import caches, model
from support import same, state_dict
from torch.nn.attention import SDPBackend

from flux2_train import events
from flux2_train.errors import UserError
from flux2_train.host.borrowed import attention
from flux2_train.host.borrowed.attention import COMFYUI, KERNELS, Kernels, measured
from flux2_train.runs.prepare import new_trainer
from flux2_train.settings.memory import MemorySettings
from flux2_train.settings.training import TrainingSettings

SHORT = TrainingSettings(
    name="short", steps=3, rank=2, learning_rate=2e-3, validation_items=0, preservation=1.0, attention="fastest",
)  # fmt: skip
MATH = attention._by_torch(SDPBackend.MATH)
usual = attention.attention_pytorch


@pytest.fixture
def slow_comfyui(monkeypatch):
    """ComfyUI's attention takes ten milliseconds longer, and there is another kernel, whose calls are counted."""
    calls = []

    def slow(*args, **kwargs):
        time.sleep(0.01)
        return usual(*args, **kwargs)

    def other(*args, **kwargs):
        calls.append(torch.is_grad_enabled())
        return MATH(*args, **kwargs)

    monkeypatch.setattr(attention, "attention_pytorch", slow)
    monkeypatch.setattr(attention, "KERNELS", {"other": other})
    return calls


def trained(model, caches, state=None, **changes):
    """(trainer, its events) after a run, or after the rest of one."""
    trainer = new_trainer(model, *caches, replace(SHORT, **changes))
    if state is not None:
        trainer.load_state_dict(state)
    with torch.inference_mode(), closing(trainer.run()) as run:
        return trainer, list(run)


def learned(trainer):
    return state_dict(trainer.adapters, torch.float32)


def inputs(dtype=torch.float32, tokens=24):
    generator = torch.Generator().manual_seed(0)
    return *(torch.randn(1, 2, tokens, 16, generator=generator).to(dtype) for _ in range(3)), 2


def test_every_kernel_that_is_there_computes_the_same_attention_and_gradients():
    """Against softmax(q k^T / sqrt(d)) v in float64."""
    q, k, v, heads = inputs()
    exact = [tensor.double().requires_grad_() for tensor in (q, k, v)]
    weights = (exact[0] @ exact[1].transpose(-1, -2) / 16**0.5).softmax(-1)
    output = (weights @ exact[2]).transpose(1, 2).reshape(1, 24, 32)
    wanted = (output, *torch.autograd.grad(output, exact, torch.ones_like(output)))
    there = 0
    for name, kernel in {"math": MATH, **KERNELS}.items():
        try:
            _, found = attention._timed(kernel, q, k, v, heads)
        except (RuntimeError, ImportError):
            continue
        there += 1
        for one, other in zip(found, wanted, strict=True):
            assert (one - other).norm() <= 1e-5 * other.norm(), name
    assert there >= 2


def test_a_kernel_that_is_wrong_has_no_gradient_or_does_not_run_is_never_chosen(monkeypatch):
    def unable(*args, **kwargs):
        raise RuntimeError("no kernel")

    monkeypatch.setattr(attention, "KERNELS", {
        "right": MATH, "wrong": lambda *args, **kwargs: MATH(*args, **kwargs) * 1.01, "unable": unable,
        "without": torch.no_grad()(MATH), "half": lambda q, k, v, heads, **_: MATH(q.detach(), k, v, heads),
    })  # fmt: skip
    for dtype in (torch.float32, torch.bfloat16):
        assert list(measured(*inputs(dtype))) == [COMFYUI, "right"] or dtype == torch.bfloat16
        assert "half" not in measured(*inputs(dtype)) and "without" not in measured(*inputs(dtype))


@pytest.mark.parametrize("seconds, expected", [
    ({COMFYUI: 1.0, "flash": 0.97}, "flash"), ({COMFYUI: 1.0, "flash": 0.985}, COMFYUI), ({COMFYUI: 1.0}, COMFYUI),
    ({COMFYUI: float("inf"), "flash": 1.0}, "flash"),
])  # fmt: skip
def test_another_kernel_is_taken_if_it_saves_more_than_chance(monkeypatch, seconds, expected):
    monkeypatch.setattr(attention, "measured", lambda *_: seconds)
    kernels = Kernels(fastest=True)
    chosen = kernels.of(inputs(), {"skip_reshape": True})
    assert list(kernels.chosen.values()) == [expected]
    assert chosen is (KERNELS["flash"] if expected == "flash" else usual)


def test_what_is_masked_and_what_has_no_gradient_is_not_measured(monkeypatch):
    monkeypatch.setattr(attention, "measured", lambda *_: pytest.fail("measured"))
    kernels = Kernels(fastest=True)
    assert kernels.of(inputs(), {"skip_reshape": True, "mask": torch.ones(24, 24)}) is usual
    assert kernels.of(inputs(), {}) is usual
    with torch.no_grad():
        assert kernels.of(inputs(), {"skip_reshape": True}) is usual
    assert Kernels().of(inputs(), {"skip_reshape": True}) is usual


@pytest.mark.long
@pytest.mark.parametrize("memory", [
    MemorySettings(), MemorySettings(recompute="selective"), MemorySettings(offload_activations="on"),
], ids=["recomputed", "attention kept", "activations in host memory"])  # fmt: skip
def test_a_run_uses_the_fastest_says_so_and_learns_the_same(model, caches, slow_comfyui, memory):
    trainer, received = trained(model, caches, memory=memory)
    assert True in slow_comfyui and False in slow_comfyui  # steps, and the prior of preservation
    chosen = trainer.memory.how.attention.chosen
    assert set(chosen.values()) == {"other"} and all("tokens" in shape for shape in chosen)
    plans = [event.text for event in received if isinstance(event, events.Planned)]
    assert "\nattention" not in plans[0] and "\nattention    other for 1 x " in plans[-1] and " ms" in plans[-1]
    assert list(trainer.state_dict()["attention"].values()) == ["other"] * len(chosen)
    plain, _ = trained(model, caches, memory=memory, attention="comfyui")
    assert "attention" not in plain.state_dict()
    for name, tensor in learned(plain).items():
        assert (learned(trainer)[name] - tensor).norm() <= 1e-4 * tensor.norm(), name


@pytest.mark.long
def test_a_resumed_run_measures_nothing_and_has_the_same_bits(monkeypatch, model, caches, slow_comfyui):
    whole, _ = trained(model, caches)
    first = new_trainer(model, *caches, SHORT)
    with torch.inference_mode(), closing(first.run()) as run:
        for event in run:
            if isinstance(event, events.Completed) and event.step == 2:
                state = first.state_dict()
                break
        state = {**state, "adapter": {name: tensor.clone() for name, tensor in state["adapter"].items()}}
    monkeypatch.setattr(attention, "measured", lambda *_: pytest.fail("measured"))
    resumed, _ = trained(model, caches, state)
    assert same(learned(whole), learned(resumed))


def test_a_kernel_that_is_gone_is_measured_anew():
    kernels = Kernels(fastest=True)
    kernels.load_state_dict({"a": "another card's", "b": COMFYUI, "c": "flash"})
    assert kernels.chosen == {"b": COMFYUI, "c": "flash"}


def test_it_does_not_go_with_compiled_blocks():
    with pytest.raises(UserError, match="set attention to 'comfyui'"):
        replace(SHORT, compile="on")
