"""Micro-batches in flight over cards learn the bits of one card, and the cards work at the same time.

On one device there is nothing to split; test_other_device.py runs this on three.
"""

import threading
import time
from collections import defaultdict
from contextlib import closing
from dataclasses import replace

import comfy.model_management
import pytest
import resuming
import torch
from resuming import assert_same, steps
from support import brief_flux2, tiny_caches

from flux2_train import events
from flux2_train.host.borrowed import cards as borrowed
from flux2_train.host.borrowed import pipeline
from flux2_train.host.system import cards
from flux2_train.runs.prepare import new_trainer
from flux2_train.settings.adapter import AdapterSettings
from flux2_train.settings.memory import MemorySettings
from flux2_train.settings.objective import GuidanceSettings, PreservationSettings
from flux2_train.settings.rollout import RolloutSettings
from flux2_train.settings.routing import RoutingSettings
from flux2_train.settings.slider import SliderSettings
from flux2_train.train import building, micro_batches, plans

pytestmark = pytest.mark.skipif(len(cards.seen()) < 3, reason="test_other_device.py runs this on three devices")
CONFIG = replace(resuming.CONFIG, steps=2, accumulate=4)
EACH = {"preservation": 1.0, "preservation_options": PreservationSettings(every=1)}
# By what is tried: the cards, what of the memory is set beside, and the run's other settings.
CASES = {
    "plain": ("2", {}, {}),
    "plain over three": ("3", {}, {}),
    "two parts, all recomputed": ("3", {}, {**EACH, "checkpointing": True}),
    "two parts in a step of one batch": ("2", {}, {**EACH, "accumulate": 1}),
    "a batch in micro-batches": ("2", {"micro_batch": 1}, {"accumulate": 1, "batch": 4}),
    "streamed": ("3", {"blocks_to_swap": 4}, {"checkpointing": True}),
    "leaves, activations in host memory": ("2", {"group_offload": "leaf", "offload_activations": "on"}, {}),
    "attention kept": ("3", {"recompute": "selective"}, {"checkpointing": True}),
    "tokens routed": ("3", {}, {"routing": RoutingSettings(0.5, 0, -1, until=100.0)}),
    "dora": ("2", {}, {"adapter": AdapterSettings(dora=True), "checkpointing": True}),
    "two passes in a graph": ("3", {}, {"guidance": GuidanceSettings(true_cfg=2.0)}),
    "contrastive": ("2", {}, {"guidance": GuidanceSettings(contrastive_guidance=2.0)}),
    "scheduled sampling": ("2", {}, {"rollout": RolloutSettings(probability=1.0, max_offset=2)}),
    "slider": ("3", {}, {"slider": True, "checkpointing": True, "accumulate": 2}),
    "slider and two parts": ("2", {}, {"slider": True, **EACH, "accumulate": 2}),
}


@pytest.fixture(scope="module")
def caches():
    """(embeds, latents) with the blank prompt's embeds among the captions'."""
    embeds, latents = tiny_caches(3, repeats=4)  # four samples of each shape
    blank = torch.randn(1, 7, 96, generator=torch.Generator().manual_seed(1))
    return replace(embeds, embeds={**embeds.embeds, "": blank}), latents


@pytest.fixture(scope="module")
def model():
    return brief_flux2(double=3, single=3)


@pytest.fixture
def trainer(model, caches):
    """Trainers on one model and data set: ``trainer("2", steps=4)``, on so many cards."""

    def make(cards="1", memory=None, **changes):
        if changes.pop("slider", False):
            neutral, positive, negative = list(caches[0].embeds)[:3]
            changes["slider"] = SliderSettings("prompts", positive, negative, neutral)
        own = MemorySettings(cards=cards, **(memory or {}))
        return new_trainer(model, *caches, replace(CONFIG, memory=own, **changes))

    return make


@pytest.fixture
def one_after_the_other(monkeypatch):
    """A function that runs a trainer without passes in flight."""

    def make(build):
        with monkeypatch.context() as patched:
            patched.setattr(plans, "may_overlap", lambda config: False)
            return build()

    return make


def in_flight(trainer):
    return trainer.memory.plan.layout.in_flight


@pytest.fixture
def order(monkeypatch):
    """By card the units that went backward over it, in their order."""
    found, done = defaultdict(list), pipeline.Lanes.done

    def noted(lanes, card):
        found[card].append(lanes.held[card])
        done(lanes, card)

    monkeypatch.setattr(pipeline.Lanes, "done", noted)
    return found


def assert_same_run(one, other):
    assert_same(one.state_dict(), other.state_dict())
    assert one.history.losses == other.history.losses and one.history.preservation == other.history.preservation
    assert torch.equal(one.history.bands, other.history.bands)


@pytest.mark.parametrize("case", CASES)
def test_learns_the_same_bits(trainer, order, case):
    count, memory, changes = CASES[case]
    one, piped = trainer(memory=memory, **changes), trainer(count, memory, **changes)
    assert (in_flight(one), in_flight(piped)) == (1, min(int(count), 4))
    assert not (steps(one) and order)
    steps(piped)
    first = order[piped.cards.devices[0]]
    assert first == [*range(len(first) // 2)] * 2 and len(first) >= 4  # two steps, each with two units at least
    assert all(order[card] == first for card in piped.cards.devices)
    assert_same_run(one, piped)
    assert len(set(one.history.losses)) == 2 and any(p.any() for p in one.adapters.trainable())


def test_learns_the_same_bits_as_one_pass_after_the_other(trainer, one_after_the_other, order):
    changes = {**EACH, "accumulate": 2}
    sequential, piped = one_after_the_other(lambda: trainer("2", **changes)), trainer("2", **changes)
    assert (in_flight(sequential), in_flight(piped)) == (1, 2)
    assert not (steps(sequential) and order)
    assert_same_run(sequential, steps(piped))
    assert order


class Busy:
    """Makes each block take so many seconds more, forward and backward, and notes when its card was busy."""

    def __init__(self, monkeypatch, seconds):
        self.seconds, self.spans, run = seconds, defaultdict(list), borrowed.Passing.block

        def block(passing, number, inner, *args, **kwargs):
            card = passing.cards.of_block(number)

            def slow(*args, **kwargs):
                result = inner(*args, **kwargs)
                self.wait(card)
                first = result[0] if isinstance(result, tuple) else result
                if first.requires_grad:
                    first.register_hook(lambda _: self.wait(card))
                return result

            return run(passing, number, slow, *args, **kwargs)

        monkeypatch.setattr(borrowed.Passing, "block", block)

    def wait(self, card):
        begun = time.perf_counter()
        time.sleep(self.seconds)
        self.spans[card].append((begun, time.perf_counter()))

    def at_once(self):
        """Whether two cards were ever busy at the same time."""
        first, *others = self.spans.values()
        return any(a < d and c < b for a, b in first for other in others for c, d in other)


@pytest.mark.parametrize("count", [2, 3])
def test_cards_work_at_the_same_time(trainer, one_after_the_other, monkeypatch, count):
    """With delays that outweigh the arithmetic: M units over S equal cards take (M + S - 1) / (M S) of the time."""
    monkeypatch.setattr(building, "split", lambda *_: (6 // count,) * count)
    busy, units = Busy(monkeypatch, 0.04), 4
    theory = (units + count - 1) / (units * count)
    for _ in range(3):  # another program may take the processor from one of the two runs
        ratio, waits = measured(trainer, one_after_the_other, busy, count, units)
        print(
            f"{units} micro-batches over {count} cards: ratio {ratio:.2f} ({theory:.2f} in theory); a card waits "
            f"{waits[0]:.0%} of the time one after the other and {waits[1]:.0%} in flight "
            f"({1 - 1 / count:.0%} and {(count - 1) / (units + count - 1):.0%})"
        )
        if ratio < (1 + theory) / 2 and waits[1] < waits[0]:
            return
    pytest.fail(f"the ratio is {ratio:.2f}, a card waits {waits}")


def measured(trainer, one_after_the_other, busy, count, units) -> tuple[float, list[float]]:
    """Seconds of a step in flight to those of one after the other, and the shares of them in which a card waits."""
    seconds, build = [], lambda: trainer(str(count), steps=1)
    for run in (one_after_the_other(build), build()):
        busy.spans.clear()
        seconds += steps(run).history.seconds
        assert busy.at_once() == (len(seconds) == 2)
    return seconds[1] / seconds[0], [1 - 2 * units * 6 / count * busy.seconds / each for each in seconds]


def test_tensors_go_from_a_card_to_the_next_one_alone(trainer, monkeypatch):
    """On a GPU any other copy would wait for all that the far card has begun, and the cards would not overlap."""
    monkeypatch.setattr(building, "split", lambda *_: (3, 2, 1))
    to, run, pairs = torch.Tensor.to, micro_batches.in_flight, set()

    def noted(tensor, *args, **kwargs):
        result = to(tensor, *args, **kwargs)
        if "cpu" not in (tensor.device.type, result.device.type) and tensor.device != result.device:
            pairs.add((tensor.device.index, result.device.index))
        return result

    def watched(*args):
        with monkeypatch.context() as patched:
            patched.setattr(torch.Tensor, "to", noted)
            return run(*args)

    monkeypatch.setattr(micro_batches, "in_flight", watched)
    split = steps(trainer("3", steps=1, **EACH, **CASES["tokens routed"][2]))
    assert in_flight(split) == 3 and pairs == {(0, 1), (1, 2), (2, 1), (1, 0)}


def test_an_error_in_one_unit_comes_out_and_leaves_nothing(trainer, model, monkeypatch):
    class Failed(Exception):
        pass

    before, split, run = threading.active_count(), trainer("3"), borrowed.Passing.block

    def block(passing, number, *args, **kwargs):
        if number == 5 and pipeline.unit().number == 2:
            raise Failed("the third unit")
        return run(passing, number, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(borrowed.Passing, "block", block)
        with pytest.raises(Failed, match="the third unit"):
            steps(split)
    assert threading.active_count() == before and split.step == 0
    assert all(p.grad is None for p in split.adapters.trainable())
    assert not [m for m in model.model.modules() if "forward" in m.__dict__ or "flux2_train_source" in m.__dict__]
    assert_same(steps(split).state_dict(), steps(trainer()).state_dict())


def test_cancel_inside_a_unit(trainer, monkeypatch):
    split, calls = trainer("2"), []

    def cancel():
        calls.append(1)
        if len(calls) == 100:
            raise comfy.model_management.InterruptProcessingException

    with monkeypatch.context() as patched:
        patched.setattr(comfy.model_management, "throw_exception_if_processing_interrupted", cancel)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            steps(split)
    assert_same(steps(split).state_dict(), steps(trainer()).state_dict())


def test_out_of_memory_repeats_the_step_with_less_in_flight(trainer, monkeypatch):
    split, run = trainer("2"), borrowed.Passing.block

    def block(passing, number, *args, **kwargs):
        if number == 5 and pipeline.unit() and pipeline.unit().number:
            raise MemoryError("no room for a second unit")
        return run(passing, number, *args, **kwargs)

    monkeypatch.setattr(borrowed.Passing, "block", block)
    with torch.inference_mode(), closing(split.run()) as received:
        warned = [event.text for event in received if isinstance(event, events.Warned)]
    assert all("ran out of memory in step 1: repeated with" in text for text in warned) and in_flight(split) == 1
    assert "2 passes in flight" in warned[0] and "in flight" not in warned[-1]
    assert "one card works at a time" in split.memory.describe()
    assert_same(split.state_dict(), steps(trainer()).state_dict())


def test_the_plan_says_whether_passes_are_in_flight(trainer):
    assert "2 passes in flight: while a card computes" in trainer("2").memory.describe()
    for changes in ({"accumulate": 1}, {"adapter": AdapterSettings(dropout=0.3)}):
        text = trainer("2", **changes).memory.describe()
        assert "one card works at a time" in text and "in flight" not in text


def test_the_models_dtype_is_set_back(trainer, model):
    core = model.model
    before, core.manual_cast_dtype = core.manual_cast_dtype, torch.float32
    try:
        steps(trainer("3", steps=1))
        assert core.manual_cast_dtype == torch.float32
    finally:
        core.manual_cast_dtype = before
