"""Compiled blocks in a run: what a run says about them, and that it goes on where they do not work."""

from contextlib import closing
from dataclasses import replace
from functools import cache

import pytest
import torch
import torch._inductor.config
from support import brief_flux2, same, state_dict, tiny_caches

from flux2_train import events
from flux2_train.data.samples import samples
from flux2_train.errors import UserError
from flux2_train.host.borrowed.cards import Cards
from flux2_train.host.borrowed.compiled import Compiled
from flux2_train.host.system import compiler
from flux2_train.planning import compiling
from flux2_train.planning.layout import SELECTIVE
from flux2_train.runs.prepare import new_trainer
from flux2_train.settings.adapter import AdapterSettings
from flux2_train.settings.memory import MemorySettings
from flux2_train.settings.training import TrainingSettings
from flux2_train.train import out_of_memory, packing, trainer
from flux2_train.train.out_of_memory import RunMemory
from flux2_train.train.step_input import kind_of

CPU = torch.device("cpu")
SHORT = TrainingSettings(name="short", steps=2, rank=2, learning_rate=2e-3, validation_items=0)
COMPILED = replace(SHORT, compile="on")
AUTO = replace(SHORT, compile="auto", steps=5)
TIMED, ON_TRIAL = "not compiled: steps are timed first", "compiled by eager, on trial"


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


@pytest.fixture
def figures(monkeypatch, traced):
    """A function that sets the seconds of steps without and with compiled blocks, in place of what steps here take.

    All steps are of one kind, and two of each way are enough, the first not counted: a trial ends after step 4.
    """
    monkeypatch.setattr(compiling, "FEW", 1)
    monkeypatch.setattr(compiling, "TAKES", 0.5)
    monkeypatch.setattr(trainer, "kind_of", lambda *_: "one")
    weigh = RunMemory.weigh

    def given(plain, compiled):
        def told(memory, kind, _, *rest):
            return weigh(memory, kind, compiled if memory.how.compiled else plain, *rest)

        monkeypatch.setattr(RunMemory, "weigh", told)

    return given


def train(parts, config, state=None):
    """A run, or the rest of one from its ``state`` as a checkpoint keeps it: the trainer and its events."""
    trainer = new_trainer(*parts, config)
    if state:
        trainer.load_state_dict(packing.copied(state))
    with torch.inference_mode(), closing(trainer.run()) as run:
        return trainer, list(run)


def blocks(received):
    """What the plans of a run say of its blocks, each once."""
    lines = [line for text in said(received, events.Planned) for line in text.splitlines()]
    return list(dict.fromkeys(line[13:] for line in lines if line.startswith("blocks  ")))


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


def test_compiled_blocks_may_keep_attentions_output(parts, traced):
    kept = replace(COMPILED, memory=MemorySettings(recompute=SELECTIVE))
    trained, _ = train(parts, kept)
    assert trained.memory.plan.layout.checkpointing == SELECTIVE and trained.memory.how.ran
    of_off = lora(train(parts, replace(kept, compile="off"))[0])
    for name, value in lora(trained).items():
        assert (value - of_off[name]).norm() <= 1e-3 * of_off[name].norm()


@pytest.mark.long
def test_auto_keeps_compiled_blocks_that_are_faster_also_when_resumed(parts, figures):
    figures(1.0, 0.25)
    parts = parts[0], *tiny_caches(1)  # of one size
    tried, received = train(parts, AUTO)
    found = "compiled by eager: 0.25 s per step, not 1 s; 1 step wins back the 0 s of compiling"
    assert blocks(received) == [TIMED, ON_TRIAL, found]
    assert [text for text in said(received, events.Phase) if "compil" in text] == [
        "trying the compiler", "compiling blocks: the next step takes longer", f"blocks are {found}"]  # fmt: skip
    assert not said(received, events.Warned) and tried.memory.how.ran and tried.memory.how.compiled
    off, _ = train(parts, replace(AUTO, compile="off"))
    assert tried.history.losses[:2] == off.history.losses[:2]  # nothing was compiled yet
    of_off = lora(off)
    for name, value in lora(tried).items():
        assert (value - of_off[name]).norm() <= 1e-3 * of_off[name].norm()
    figures(1.0, 4.0)  # nothing is weighed again
    resumed, received = train(parts, replace(AUTO, steps=6), tried.state_dict())
    assert blocks(received) == [found] and resumed.memory.how.ran and resumed.step == 6


@pytest.mark.long
def test_auto_gives_up_what_is_not_faster_also_when_resumed(parts, figures):
    figures(1.0, 1.5)
    parts = parts[0], *tiny_caches(1)  # of one size
    tried, received = train(parts, AUTO)
    found = "not compiled: compiled steps take 1.5 s and others 1 s"
    assert blocks(received) == [TIMED, ON_TRIAL, found] and not said(received, events.Warned)
    assert tried.memory.how.ran and not tried.memory.how.compiled
    resumed, received = train(parts, replace(AUTO, steps=12), tried.state_dict())
    assert blocks(received) == [found] and not resumed.memory.how.ran and resumed.step == 12


def test_auto_has_the_bits_of_off_where_the_run_is_too_short_to_gain(parts, figures):
    figures(0.1, 0.0)
    short, received = train(parts, AUTO)
    assert blocks(received) == [TIMED, "not compiled: 3 steps of 0.1 s would not win back the time of compiling"]
    assert "trying the compiler" not in said(received, events.Phase)
    off, of_off = train(parts, replace(AUTO, compile="off"))
    assert same(lora(short), lora(off)) and not blocks(of_off)
    assert "compiling" not in off.state_dict()


def test_auto_stays_off_where_no_block_can_be_compiled_and_says_why(parts, traced):
    loha = replace(AUTO, steps=1, adapter=AdapterSettings(kind="loha"))
    tried, received = train(parts, loha)
    assert "LoHa's products are as large as the weights" in said(received, events.Warned)[0]
    assert blocks(received) == [said(received, events.Warned)[0].removesuffix(".").replace(
        "Blocks are not compiled, and the run goes on as with compile 'off'", "not compiled")]  # fmt: skip
    assert same(lora(tried), lora(train(parts, replace(loha, compile="off"))[0]))
    two = Cards((CPU, torch.device("meta")), (3, 3))
    against = out_of_memory._against_compiling
    plain = new_trainer(*parts, AUTO).adapters
    assert against(AUTO, plain, two) == "compiled blocks run on one card" and not against(AUTO, plain, None)
    selective = replace(AUTO, memory=MemorySettings(recompute=SELECTIVE))
    assert new_trainer(*parts, selective).memory.plan.layout.checkpointing == SELECTIVE


def test_auto_finds_out_that_another_node_keeps_blocks_from_being_compiled(parts, figures):
    figures(1.0, 0.1)
    model = parts[0].clone()
    model.set_model_attn1_output_patch(lambda found, options: 1.5 * found)
    tried, received = train((model, *parts[1:]), AUTO)
    assert blocks(received)[-1] == "not compiled: no block could be compiled"
    assert any("another node has patched its attention" in text for text in said(received, events.Warned))
    assert same(lora(tried), lora(train((model, *parts[1:]), replace(AUTO, compile="off"))[0]))


def test_auto_without_a_compiler_decides_nothing_so_that_a_resumed_run_looks_again(parts, figures, monkeypatch):
    figures(1.0, 0.25)
    monkeypatch.setattr(compiler, "problem", cache(lambda device: "no Triton"))
    tried, received = train(parts, AUTO)
    assert said(received, events.Warned) == [
        "Blocks are not compiled, and the run goes on as with compile 'off': torch's compiler does not work here (no "
        "Triton)."
    ]
    assert blocks(received) == [TIMED, "not compiled: torch's compiler does not work here (no Triton)"]
    assert same(lora(tried), lora(train(parts, replace(AUTO, compile="off"))[0]))
    assert tried.state_dict()["compiling"]["compiled"] is None


@pytest.mark.parametrize("error, text, words", [
    (RuntimeError, "no code for these sizes", "RuntimeError: no code for these sizes"),
    (torch.OutOfMemoryError, "CUDA out of memory.", "OutOfMemoryError: CUDA out of memory"),
])  # fmt: skip
def test_auto_gives_up_when_a_step_fails_also_when_resumed(parts, figures, monkeypatch, error, text, words):
    """Also when memory runs out: the layout of blocks that are not compiled stays."""

    def fails(owner, key, block):
        raise error(text)

    figures(1.0, 0.25)
    monkeypatch.setattr(Compiled, "kind", fails)
    tried, received = train(parts, AUTO)
    found = f"not compiled: step 3 failed with them and was repeated ({words})"
    assert blocks(received) == [TIMED, ON_TRIAL, found]
    off, _ = train(parts, replace(AUTO, compile="off"))
    assert same(lora(tried), lora(off)) and tried.memory.plan.layout == off.memory.plan.layout
    _, received = train(parts, replace(AUTO, steps=9), tried.state_dict())
    assert blocks(received) == [found]


def test_kinds_are_sizes_and_preservation():
    small, *_ = of = samples(*tiny_caches())
    large = next(sample for sample in of if sample.shape != small.shape)
    assert kind_of([small, large], False) == kind_of([large, small], False)
    kinds = [([small], False), ([small], True), ([large], False), ([small, small], False)]
    assert len({kind_of(*each) for each in kinds}) == len(kinds)
