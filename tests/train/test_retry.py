"""Memory in a run: every way to lay it out gives the same LoRA, and running out of it costs nothing but time."""

import json
import re
import sys
from contextlib import closing, contextmanager
from dataclasses import fields, replace

import pytest
import torch
from children import run_probe
from support import brief_flux2, same, state_dict, tiny_caches

from flux2_train import events
from flux2_train.errors import UserError
from flux2_train.host.borrowed import borrow
from flux2_train.host.borrowed.frozen import FrozenLinear
from flux2_train.host.borrowed.lora_linear import LoraLinear
from flux2_train.host.borrowed.streamed import within
from flux2_train.host.system import machine
from flux2_train.host.system.memory import is_out_of_memory
from flux2_train.runs.prepare import new_trainer
from flux2_train.settings.adapter import AdapterSettings
from flux2_train.settings.memory import MemorySettings
from flux2_train.settings.training import TrainingSettings

CPU = torch.device("cpu")
LINEARS = (FrozenLinear, LoraLinear)
SHORT = TrainingSettings(name="short", steps=2, rank=2, learning_rate=2e-3, validation_items=0)


@pytest.fixture(scope="module")
def parts():
    return brief_flux2(format="bf16"), *tiny_caches()


def train(parts, config=SHORT, **changes):
    trainer = new_trainer(*parts, replace(config, **changes))
    with torch.inference_mode(), closing(trainer.run()) as run:
        return trainer, list(run)


def lora(trainer):
    return state_dict(trainer.adapters, torch.float32)


@pytest.fixture(scope="module")
def plain(parts):
    return lora(train(parts)[0])


@contextmanager
def failing(where, at):
    """The device has no memory left at the ``at``-th call of a Linear's forward or backward, once.

    Linears are frozen ones, and frozen ones with a LoRA, which are one function with it.
    """
    calls = [0]

    def fail(original):
        def call(*args):
            calls[0] += 1
            if calls[0] == at:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 byte")
            return original(*args)

        return staticmethod(call)

    with pytest.MonkeyPatch.context() as patch:
        for function in LINEARS:
            patch.setattr(function, where, fail(getattr(function, where)))
        yield calls


@pytest.mark.parametrize("changes", [
    {"memory": MemorySettings(blocks_to_swap=2)}, {"memory": MemorySettings(offload_percent=40)},
    {"memory": MemorySettings(group_offload="leaf")}, {"memory": MemorySettings(group_offload="block",
    blocks_per_group=2)},
    {"memory": MemorySettings(blocks_to_swap=3, stream=False)}, {"offload": "all"}, {"offload": "off"},
    {"memory": MemorySettings(recompute="selective")}, {"memory": MemorySettings(recompute="blocks")},
    {"memory": MemorySettings(recompute="blocks", recompute_every=2)},
    {"memory": MemorySettings(offload_activations="on")}, {"checkpointing": False},
], ids=str)  # fmt: skip
def test_every_layout_gives_the_same_lora(parts, plain, changes):
    trainer, received = train(parts, **changes)
    assert same(lora(trainer), plain)
    said = next(event.text for event in received if isinstance(event, events.Planned))
    layout, default = trainer.memory.plan.layout, train_layout(parts)
    assert (layout == default) == (changes in ({"offload": "off"}, {"checkpointing": False}))
    assert layout.checkpointing == asked_recomputation(changes)
    assert ("streamed" in said) == bool(layout.streamed)
    assert len(layout.streamed) == {2: 2, 40: 1}.get(first_amount(changes), 3 if layout.streamed else 0)


def first_amount(changes):
    memory = changes.get("memory", MemorySettings())
    return memory.blocks_to_swap or memory.offload_percent


def asked_recomputation(changes):
    """As asked for; moved activations are those of recomputed blocks, and there is room for all others."""
    memory = changes.get("memory", MemorySettings())
    return "blocks" if memory.offload_activations == "on" else memory.recompute.replace("auto", "off")


def train_layout(parts):
    return new_trainer(*parts, SHORT).memory.plan.layout


@pytest.mark.long
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("where, at", [("forward", 1), ("forward", 16), ("forward", 40), ("backward", 5)])
def test_a_step_that_ran_out_of_memory_is_repeated_bit_by_bit(parts, where, at, dropout):
    """In the first step's forward, at its end, in the second step, and in backward."""
    config = replace(SHORT, checkpointing=False, adapter=AdapterSettings(dropout=dropout))
    expected, _ = train(parts, config)
    with failing(where, at) as calls:
        trainer, received = train(parts, config)
    assert calls[0] > at
    assert same(lora(trainer), lora(expected)) and trainer.history.losses == expected.history.losses
    said = [event.text for event in received if isinstance(event, events.Warned)]
    assert len(said) == 1 and said[0].startswith("The device ran out of memory in step ") and "repeated" in said[0]
    plans = [event.text for event in received if isinstance(event, events.Planned)]
    assert len(plans) == 2 and plans[1] == trainer.memory.describe() != plans[0]
    assert trainer.memory.plan.layout.checkpointing != "off"


@pytest.mark.long
def test_laying_out_the_lower_level_may_find_no_memory_either(parts, plain, monkeypatch):
    lay_out, asked = borrow.Borrowed.lay_out, []

    def short(self, layout):
        asked.append(layout)
        lay_out(self, layout)
        if len(asked) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 byte")

    monkeypatch.setattr(borrow.Borrowed, "lay_out", short)
    with failing("forward", 16):
        trainer, received = train(parts, checkpointing=False)
    assert len(asked) == 2 and asked[0] != asked[1] == trainer.memory.plan.layout
    assert same(lora(trainer), plain)
    assert len([event for event in received if isinstance(event, events.Warned)]) == 1


def test_slow_transfers_are_told_once(parts, monkeypatch):
    monkeypatch.setattr(borrow.Borrowed, "unpinned", lambda self: 3_200_000_000 if self.layout.streamed else 0)
    for memory, said in ((MemorySettings(), "half of"), (MemorySettings(pinned_memory=2), "pinned_memory is 2 GB")):
        _, received = train(parts, offload="all", memory=memory)
        (warned,) = [event.text for event in received if isinstance(event, events.Warned)]
        assert warned.startswith("3.2 GB of streamed weights are not in pinned memory") and said in warned
    assert not any(isinstance(event, events.Warned) for event in train(parts)[1])


@pytest.mark.long
def test_a_batch_is_split_with_the_same_loss_and_gradients(parts, monkeypatch):
    """Rounding of fp32 (6e-8) over sums of some ten thousand terms: 1e-5."""
    found = []

    def keep(self, closure=None):
        found.append([p.grad.clone() for group in self.param_groups for p in group["params"]])

    monkeypatch.setattr(torch.optim.AdamW, "step", keep)
    config = replace(SHORT, batch=2, steps=1)
    whole, _ = train(parts, config)
    asked, _ = train(parts, config, memory=MemorySettings(micro_batch=1))
    with failing("forward", 20):
        forced, received = train(parts, config)
    assert forced.memory.plan.layout.micro_batch == asked.memory.plan.layout.micro_batch == 1
    assert any("1 of 2 images at a time" in e.text for e in received if isinstance(e, events.Warned))
    for other, gradients in zip((asked, forced), found[1:], strict=True):
        assert other.history.losses == pytest.approx(whole.history.losses, rel=1e-6)
        for a, b in zip(gradients, found[0], strict=True):
            assert (a - b).norm() <= 1e-5 * b.norm()


def test_without_a_level_left_the_error_is_the_devices_own(parts):
    trainer = new_trainer(*parts, replace(SHORT, memory=MemorySettings(recompute="blocks", recompute_every=1)))
    state = trainer.generator.get_state()
    with (
        failing("backward", 3), pytest.raises(torch.OutOfMemoryError), torch.inference_mode(),
        closing(trainer.run()) as run,
    ):  # fmt: skip
        list(run)
    assert torch.equal(trainer.generator.get_state(), state) and trainer.step == 0
    assert all(p.grad is None for p in trainer.adapters.trainable())


def test_other_errors_are_not_repeated(parts, monkeypatch):
    calls = []

    def fail(ctx, x, *rest):
        calls.append(rest)
        raise ValueError("no")

    for function in LINEARS:
        monkeypatch.setattr(function, "forward", staticmethod(fail))
    with pytest.raises(ValueError, match="no"):
        train(parts, checkpointing=False)
    assert len(calls) == 1


def test_a_limit_is_planned_for_or_refused_before_anything_is_loaded(parts):
    free = train_peak(parts, MemorySettings(memory_limit=60))
    tight = train_peak(parts, MemorySettings(memory_limit=(free[1] * 1.05 + 0.3e9) / 1e9 - 0.001))
    assert free[0].checkpointing == "off" and tight[0].checkpointing != "off" and tight[1] < free[1]
    with pytest.raises(UserError, match="needs 0.3 GB of device memory at least, 0.1 GB are free"):
        new_trainer(*parts, replace(SHORT, memory=MemorySettings(memory_limit=0.1)))


def test_a_limit_and_pinned_memory_reach_comfyui_and_the_ring(parts, monkeypatch):
    """ComfyUI is asked to leave free what the plan needs beside the weights, and all that is beyond the limit."""
    asked, free = [], machine.machine(CPU).vram
    monkeypatch.setattr(machine.comfy.model_management, "get_free_memory", lambda device: free)
    load = borrow.comfy.model_management.load_models_gpu
    monkeypatch.setattr(
        borrow.comfy.model_management, "load_models_gpu",
        lambda models, memory_required: asked.append(memory_required) or load(models, memory_required=memory_required),
    )  # fmt: skip
    for limit in (0.0, 2.0):
        memory = MemorySettings(memory_limit=limit, recompute="blocks", recompute_every=1, pinned_memory=3.0)
        trainer, _ = train(parts, memory=memory)
        parts_of = trainer.memory.plan.estimate.parts
        needed = sum(parts_of.values()) - parts_of["weights"]
        assert asked[-1] == needed + (free - limit * 1e9 if limit else 0)
        assert trainer.memory.how.pinned == 3e9


def test_pinned_memory_is_given_in_order_while_it_lasts():
    assert within([4, 5, 1, 3], 8) == [True, False, True, True]
    assert within([4, 5], 0.5) == [False, False]


def train_peak(parts, memory):
    plan = new_trainer(*parts, replace(SHORT, memory=memory)).memory.plan
    return plan.layout, plan.estimate.peak


@pytest.mark.parametrize("changes, words", [
    ({"offload": "some"}, "offload is 'some'; choose one of auto, off, all"),
    ({"offload": "off", "memory": MemorySettings(blocks_to_swap=1)}, "offload is 'off', but Memory says"),
])  # fmt: skip
def test_what_contradicts_itself_is_refused(changes, words):
    with pytest.raises(UserError, match=words):
        TrainingSettings(**changes)


@pytest.mark.parametrize("values, words", [
    ({"blocks_to_swap": 1, "offload_percent": 5}, "say the same twice"),
    ({"blocks_per_group": 2}, "needs group_offload 'block'"),
    ({"offload_activations": "on", "recompute": "selective"}, "set recompute to 'blocks'"),
    ({"offload_percent": 101}, "offload_percent is 101"),
    ({"recompute": "some"}, "recompute is 'some'"),
])  # fmt: skip
def test_memory_options_are_checked(values, words):
    with pytest.raises(UserError, match=words):
        MemorySettings(**values)


def test_more_blocks_than_the_flavour_has_are_named(parts):
    with pytest.raises(UserError, match=r"blocks_to_swap is 4, but FLUX.2 128/1/2/96 has 3 blocks"):
        new_trainer(*parts, replace(SHORT, memory=MemorySettings(blocks_to_swap=4)))


def test_the_node_gives_every_setting(pack):
    node = next(node for node in pack.NODES if node.GET_SCHEMA().node_id == "Flux2Memory")
    defaults = {entry.id: entry.default for entry in node.GET_SCHEMA().inputs}
    assert repr(node.execute(**defaults).args[0].sections["memory"]) == repr(MemorySettings())
    assert set(defaults) == {field.name for field in fields(MemorySettings)}


@pytest.mark.long
def test_a_real_allocators_limit_is_stepped_down_from():
    """The system itself refuses torch's CPU allocator the memory, which then raises no OutOfMemoryError."""
    if sys.platform != "linux":
        pytest.skip("only Linux limits a process's address space so")
    # Large blocks are mapped one by one and small ones lie in one heap: what an earlier run has left of either would
    # serve the next one outside of the limit.
    heap = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20), "MALLOC_ARENA_MAX": "1"}
    found = json.loads(run_probe("limited_memory.py", **heap).splitlines()[-1])
    assert found["same"] and found["layout"] == "selective", found
    said = r"The device ran out of memory in step 1: repeated with all weights resident, recomputed.* left out\."
    assert len(found["told"]) > 1 and all(re.fullmatch(said, text) for text in found["told"]), found


@pytest.mark.parametrize("error, expected", [
    (torch.OutOfMemoryError("CUDA out of memory."), True),
    (MemoryError(), True),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"), True),
    (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."), True),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
    (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"), True),
    (RuntimeError("CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`"), True),
    (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
    (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"), False),
    (RuntimeError("shape '[2]' is invalid for input of size 3"), False),
    (ValueError("DefaultCPUAllocator: "), False),
], ids=str)  # fmt: skip
def test_what_counts_as_out_of_memory(error, expected):
    assert is_out_of_memory(error) == expected
