"""A model split over cards learns, measures and paints the bits of one card, and is given back as it was.

On one device there is nothing to split; test_other_device.py runs this on three.
"""

from contextlib import closing
from dataclasses import replace

import comfy.model_management
import pytest
import resuming
import torch
from resuming import assert_same, session, steps
from support import brief_flux2, tiny_caches

from flux2_train import events
from flux2_train.errors import UserError
from flux2_train.host.borrowed import cards as borrowed
from flux2_train.host.borrowed.borrow import linears
from flux2_train.host.system import cards
from flux2_train.runs.prepare import new_trainer
from flux2_train.settings.adapter import AdapterSettings
from flux2_train.settings.memory import MemorySettings
from flux2_train.settings.objective import GuidanceSettings
from flux2_train.settings.optimizer import EmaSettings, OptimizerSettings
from flux2_train.settings.previews import PreviewSettings, Prompt, ValidationLossSettings
from flux2_train.settings.routing import RoutingSettings
from flux2_train.train.building import cards_of
from flux2_train.train.preview_request import PreviewRequest

pytestmark = pytest.mark.skipif(len(cards.seen()) < 3, reason="test_other_device.py runs this on three devices")
CONFIG = replace(resuming.CONFIG, steps=3)
BLOCKS, DOUBLE = 6, 3
CLIPPED = OptimizerSettings(max_grad_norm=1e-4)
PAINTING = PreviewSettings((Prompt("zbot"),), "", 48, 32, steps=1, every=1)
# By what is tried: the cards, what of the memory is set beside, and the run's other settings.
CASES = {
    "plain": ("2", {}, {}),
    "gradients clipped, all recomputed": ("auto", {}, {"checkpointing": True, "optimizer": CLIPPED}),
    "preservation and accumulate": ("3", {}, {"preservation": 1.0, "batch": 2, "accumulate": 2, "checkpointing": True}),
    "together": ("0,2", {}, {"true cfg": 2.0, "batch": 2}),
    "streamed": ("auto", {"blocks_to_swap": 4}, {"checkpointing": True}),
    "leaves, activations in host memory": ("2", {"group_offload": "leaf", "offload_activations": "on"}, {}),
    "attention kept": ("auto", {"recompute": "selective"}, {"checkpointing": True}),
    "tokens routed across cards": ("auto", {}, {"routing": RoutingSettings(0.5, 0, -1, until=100.0)}),
    "in 8 bits": ("auto", {}, {"speed": "fast", "checkpointing": True}),
    "dora": ("auto", {}, {"adapter": AdapterSettings(dora=True), "checkpointing": True}),
    "lokr": ("auto", {}, {"adapter": AdapterSettings(kind="lokr", lokr_decompose_both=True)}),
    "dropout": ("auto", {}, {"adapter": AdapterSettings(dropout=0.3), "checkpointing": True}),
    "ema": ("auto", {}, {"ema": EmaSettings(ema_decay=0.9)}),
    "prodigy": ("auto", {}, {"optimizer": OptimizerSettings("prodigy"), "learning_rate": 1.0}),
    "lion": ("auto", {}, {"optimizer": OptimizerSettings("lion")}),
    "adafactor": ("auto", {}, {"optimizer": OptimizerSettings("adafactor")}),
    "schedulefree": ("auto", {}, {"optimizer": OptimizerSettings("schedulefree", warmup=2)}),
}


@pytest.fixture(scope="module")
def caches():
    """(embeds, latents) with the prompts' embeds among the captions'."""
    embeds, latents = tiny_caches(3)
    generator = torch.Generator().manual_seed(1)
    prompts = {text: torch.randn(1, 7, 96, generator=generator) for text in ("", *PAINTING.texts)}
    return replace(embeds, embeds={**embeds.embeds, **prompts}), latents


@pytest.fixture(scope="module")
def model():
    return brief_flux2(double=DOUBLE, single=BLOCKS - DOUBLE)


@pytest.fixture
def trainer(model, caches):
    """Trainers on one model and data set: ``trainer("2", steps=4)``, on so many cards."""

    def make(cards="1", previews=None, **changes):
        memory = changes.pop("memory", MemorySettings(cards=cards))
        return new_trainer(model, *caches, replace(CONFIG, memory=memory, **changes), previews=previews)

    return make


def places_and_weights(model):
    return {name: (layer.weight.device, layer.weight.detach().cpu().clone()) for name, layer in linears(model).items()}


def assert_given_back(model, before):
    after = places_and_weights(model)
    assert all(after[name][0] == device and torch.equal(after[name][1], w) for name, (device, w) in before.items())
    assert not [m for m in model.model.modules() if "forward" in m.__dict__ or "flux2_train_source" in m.__dict__]


@pytest.mark.parametrize("case", CASES)
def test_learns_the_same_bits(trainer, model, case):
    count, memory, changes = CASES[case]
    if "true cfg" in changes:
        changes = {"batch": 2, "guidance": GuidanceSettings(true_cfg=changes["true cfg"])}
    one = steps(trainer(memory=MemorySettings(**memory), **changes))
    before = places_and_weights(model)
    split = trainer(memory=MemorySettings(cards=count, **memory), **changes)
    steps(split)
    used = split.cards.devices
    assert sum(split.cards.counts) == BLOCKS and all(split.cards.counts)
    assert {p.device for p in split.adapters.trainable()} == set(used) and len(used) == (
        3 if count in ("auto", "3") else 2
    )
    state = split.optimizer.state
    assert all(
        t.device == p.device for p in state for t in state[p].values() if isinstance(t, torch.Tensor) and t.dim()
    )
    assert_same(one.state_dict(), split.state_dict())
    assert one.history.losses == split.history.losses and len(set(one.history.losses)) > 1
    assert_given_back(model, before)


def test_weights_lie_on_the_card_of_their_block_and_are_copied_once(trainer, model):
    split = trainer("auto", steps=2)
    with torch.inference_mode(), closing(split.run()) as run:
        next(event for event in run if isinstance(event, events.Stepped))
        how, layers = split.memory.how, linears(model)
        held = {name: t.device for weights in how.elsewhere for name, kept in weights.kept.items() for t in kept}
        for name, layer in layers.items():
            card = split.cards.of_layer(name, DOUBLE)
            assert held.get(name, layer.weight.device) == card
            assert (name in held) == (card != model.load_device) == (layer.weight.device.type == "cpu")
        before = [id(weights.kept) for weights in how.elsewhere]
        next(event for event in run if isinstance(event, events.Stepped))
        assert before == [id(weights.kept) for weights in how.elsewhere] and not how.copied()
    outside = {name: card for name, card in held.items() if "_blocks." not in name}
    assert outside == {f"final_layer.{name}": split.cards.devices[-1] for name in ("linear", "adaLN_modulation.1")}


def test_a_run_goes_on_with_another_number_of_cards(trainer, tmp_path):
    whole = trainer()
    session(whole, tmp_path / "whole")
    place = tmp_path / "cut"
    with pytest.raises(resuming.Stop):
        session(trainer("3"), place, resuming.Listener(1))
    with pytest.raises(resuming.Stop):
        session(trainer("2"), place, resuming.Listener(2))
    last = trainer()
    session(last, place)
    assert_same(whole.state_dict(), last.state_dict())
    assert last.history.losses == whole.history.losses


def test_previews_and_losses_in_a_run_are_the_same(nano, trainer):
    seen = []
    for count in ("1", "auto"):
        request, measuring = PreviewRequest(PAINTING, nano.vae), ValidationLossSettings(per_image=True)
        one = trainer(count, request, steps=1, validation_items=2, validation_loss=measuring)
        with torch.inference_mode(), closing(one.run()) as run:
            received = list(run)
        pictures = [p for e in received if isinstance(e, events.Previewed) for p in e.pictures]
        seen.append(([e for e in received if isinstance(e, (events.ImagesMeasured, events.Validated))], pictures))
    (measured, painted), (expected, pictures) = seen
    assert measured == expected and measured and len(painted) == 2
    assert all(torch.equal(a.painted, b.painted) for a, b in zip(painted, pictures, strict=True))
    assert not torch.equal(painted[0].painted, painted[1].painted)


def test_cancel_inside_a_step_gives_the_model_back(trainer, model, monkeypatch):
    steps(trainer(steps=1))
    before, calls = places_and_weights(model), []
    split = trainer("auto")

    def cancel():
        calls.append(1)
        if len(calls) == 60:
            raise comfy.model_management.InterruptProcessingException

    with monkeypatch.context() as patched:
        patched.setattr(comfy.model_management, "throw_exception_if_processing_interrupted", cancel)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            steps(split)
    assert_given_back(model, before)
    assert_same(steps(split).state_dict(), steps(trainer()).state_dict())


def test_out_of_memory_on_one_card_repeats_the_step_in_a_smaller_layout(trainer, monkeypatch):
    run, failing = borrowed.Passing.block, [1]

    def short(self, number, *args, **kwargs):
        if number == BLOCKS - 1 and failing:
            failing.pop()
            raise MemoryError("the last card is full")
        return run(self, number, *args, **kwargs)

    monkeypatch.setattr(borrowed.Passing, "block", short)
    split = trainer("2", steps=1)
    with torch.inference_mode(), closing(split.run()) as received:
        warned = [event.text for event in received if isinstance(event, events.Warned)]
    assert (
        any("ran out of memory in step 1" in text for text in warned)
        and split.memory.plan.layout.checkpointing != "off"
    )
    assert_same(split.state_dict(), steps(trainer(steps=1)).state_dict())


def test_the_plan_says_what_lies_where_and_that_one_card_works_at_a_time(trainer):
    text = trainer("3").memory.describe()
    assert "card 1 of 3: " in text and "card 3 of 3: " in text and "one card works at a time" in text
    assert "card 1" not in trainer().memory.describe()
    assert trainer("3").cards.counts[0] < DOUBLE  # so that the tests hand over between double blocks, too


@pytest.mark.parametrize("setting, said", [
    ("4", "cards of Memory is 4, but ComfyUI sees 3 cards"),
    ("0,3", "there is no card 3"),
    ("1,2", "ComfyUI itself computes on card 0"),
])  # fmt: skip
def test_cards_that_are_not_there_are_refused(trainer, setting, said):
    with pytest.raises(UserError, match=said):
        trainer(setting)


def test_cards_and_processes_are_refused(model):
    with pytest.raises(UserError, match="2 processes train"):
        cards_of(model, replace(CONFIG, memory=MemorySettings(cards="2")), 2)


def test_a_lora_on_the_model_is_not_split(caches, model):
    patched, name = model.clone(), "diffusion_model.single_blocks.2.linear2.weight"
    patched.add_patches({name: ("diff", (torch.zeros(patched.model.get_parameter(name).shape),))})
    config = replace(CONFIG, memory=MemorySettings(cards="2"))
    with pytest.raises(UserError, match=r"single_blocks.2.linear2 cannot lie on another card"):
        steps(new_trainer(patched, *caches, config))


def test_a_layer_of_another_pack_is_not_split(trainer, model, monkeypatch):
    layer = linears(model)["single_blocks.2.linear2"]
    monkeypatch.setattr(type(layer), "__module__", "another_pack")
    with pytest.raises(UserError, match="cannot lie on another card"):
        steps(trainer("2"))
