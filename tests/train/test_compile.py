"""Compiled blocks in a run: what a run says about them, and that it goes on where they do not work."""

from contextlib import closing
from dataclasses import replace

import pytest
import torch
import torch._inductor.config
from support import brief_flux2, same, state_dict, tiny_caches

from flux2_train import events
from flux2_train.errors import UserError
from flux2_train.host.borrowed.compiled import Compiled
from flux2_train.host.system import compiler
from flux2_train.planning.layout import BLOCKS, SELECTIVE
from flux2_train.runs.prepare import new_trainer
from flux2_train.settings.memory import MemorySettings
from flux2_train.settings.training import TrainingSettings

CPU = torch.device("cpu")
SHORT = TrainingSettings(name="short", steps=2, rank=2, learning_rate=2e-3, validation_items=0)
COMPILED = replace(SHORT, compile="on")


@pytest.fixture
def parts():
    return brief_flux2(), *tiny_caches()


@pytest.fixture
def no_compiler():
    compiler.problem.cache_clear()
    with torch._inductor.config.patch({"cpp.cxx": ("/nowhere/g++",), "force_disable_caches": True}):
        yield
    compiler.problem.cache_clear()


@pytest.fixture
def traced(monkeypatch):
    """A compiler that always works: it runs the graphs as torch has traced them."""
    monkeypatch.setattr(compiler, "BACKEND", "eager")
    compiler.problem.cache_clear()
    yield
    compiler.problem.cache_clear()


def train(parts, config):
    trainer = new_trainer(*parts, config)
    with torch.inference_mode(), closing(trainer.run()) as run:
        return trainer, list(run)


def said(received, kind):
    return [event.text for event in received if isinstance(event, kind)]


def lora(trainer):
    return state_dict(trainer.adapters, torch.float32)


@pytest.mark.long
def test_without_a_compiler_the_run_says_so_and_has_the_bits_of_off(parts, no_compiler):
    trainer, received = train(parts, COMPILED)
    (warning,) = said(received, events.Warned)
    assert warning.startswith(
        "Blocks are not compiled, and the run goes on as with compile 'off': torch's compiler does not work here "
        "(InvalidCxxCompiler: No working C++ compiler found"
    )
    assert "\nblocks       not compiled: torch's compiler does not work here" in said(received, events.Planned)[0]
    off, of_off = train(parts, SHORT)
    assert same(lora(trainer), lora(off))
    assert "blocks       " not in said(of_off, events.Planned)[0]
    assert "trying the compiler" not in said(of_off, events.Phase)


@pytest.mark.long
def test_the_plan_says_that_blocks_are_compiled_and_the_lora_is_equal_up_to_rounding(parts, traced):
    once = replace(COMPILED, steps=1)  # of one size
    trainer, received = train(parts, once)
    assert not said(received, events.Warned)
    assert said(received, events.Planned)[0].endswith("\nblocks       compiled by eager")
    assert "trying the compiler" in said(received, events.Phase)
    off = lora(train(parts, replace(once, compile="off"))[0])
    for name, value in lora(trainer).items():
        assert (value - off[name]).norm() <= 1e-3 * off[name].norm()


def test_a_step_that_fails_with_compiled_blocks_is_repeated_without_them(parts, traced, monkeypatch):
    """As if the code for backward could not be made, which happens in the middle of a step."""

    def fails(owner, key, block):
        raise RuntimeError("no code for these sizes")

    monkeypatch.setattr(Compiled, "kind", fails)
    trainer, received = train(parts, COMPILED)
    assert said(received, events.Warned) == [
        "Blocks are not compiled, and the run goes on as with compile 'off': step 1 failed with them and was repeated "
        "(RuntimeError: no code for these sizes)."
    ]
    assert "\nblocks       not compiled: step 1 failed" in said(received, events.Planned)[-1]
    assert same(lora(trainer), lora(train(parts, SHORT)[0]))


def test_cancel_and_other_errors_are_not_blamed_on_the_compiler(parts, traced, monkeypatch):
    def fails(owner, key, block):
        raise UserError("The MODEL cannot do that.")

    monkeypatch.setattr(Compiled, "kind", fails)
    with pytest.raises(UserError, match="The MODEL cannot do that"):
        train(parts, COMPILED)


@pytest.mark.slow
def test_this_machines_compiler_works():
    compiler.problem.cache_clear()
    assert compiler.problem(CPU) == ""


def test_compiled_blocks_recompute_attention_too(parts):
    assert new_trainer(*parts, COMPILED).memory.plan.layout.checkpointing == BLOCKS
    with pytest.raises(UserError, match="compile is 'on', and compiled blocks compute attention again too"):
        replace(COMPILED, memory=MemorySettings(recompute=SELECTIVE))
