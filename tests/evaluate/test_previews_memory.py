"""Previews and losses of single images while weights are streamed: the same bits as with all of them resident."""

from contextlib import closing
from dataclasses import replace

import pytest
import torch
from delayed import Late
from support import same, state_dict, tiny_caches, tiny_flux2

from flux2_train import events
from flux2_train.host.borrowed import streamed
from flux2_train.runs.prepare import new_trainer
from flux2_train.settings.memory import MemorySettings
from flux2_train.settings.previews import PreviewSettings, Prompt, ValidationLossSettings
from flux2_train.settings.training import TrainingSettings
from flux2_train.streaming.ring import Ring
from flux2_train.train.preview_request import PreviewRequest

LAYOUTS = {
    "all blocks": {"offload": "all"},
    "leaves": {"memory": MemorySettings(group_offload="leaf"), "checkpointing": True},
    "two at a time, none ahead": {"memory": MemorySettings(group_offload="block", blocks_per_group=2, stream=False)},
    "activations too": {"offload": "all", "checkpointing": True, "memory": MemorySettings(offload_activations="on")},
}
CONFIG = TrainingSettings(steps=2, rank=2, learning_rate=1e-2, validation_items=2, checkpointing=False,
                     validation_loss=ValidationLossSettings(per_image=True))  # fmt: skip
PAINTING = PreviewSettings((Prompt("zbot"), Prompt("a toy", strength=0.5)), "bad", 48, 32, steps=1, every=1)


@pytest.fixture(scope="module")
def caches():
    """(embeds, latents) with the prompts' embeds among the captions'."""
    embeds, latents = tiny_caches(3)
    generator = torch.Generator().manual_seed(1)
    prompts = {text: torch.randn(1, 7, 96, generator=generator) for text in PAINTING.texts}
    return replace(embeds, embeds={**embeds.embeds, **prompts}), latents


def run(nano, caches, config=CONFIG, painting=PAINTING):
    """(trainer, events) of a run whose streamed weights arrive late."""
    trainer = new_trainer(tiny_flux2(), *caches, config, previews=painting and PreviewRequest(painting, nano.vae))
    trainer.memory.how.via = Late(0.0005)
    with torch.inference_mode(), closing(trainer.run()) as received:
        return trainer, list(received)


def looked_at(received):
    """(what was measured, what was painted)."""
    measured = [e for e in received if isinstance(e, (events.ImagesMeasured, events.Validated))]
    return measured, [p for e in received if isinstance(e, events.Previewed) for p in e.pictures]


def same_lora(*trainers):
    ours, expected = (state_dict(trainer.adapters, torch.float32) for trainer in trainers)
    return same(ours, expected)


@pytest.fixture(scope="module")
def resident(nano, caches):
    return run(nano, caches)


@pytest.mark.drawn(cases=2)
@pytest.mark.long
@pytest.mark.parametrize("layout", LAYOUTS)
def test_streamed_weights_paint_measure_and_learn_the_same(nano, caches, resident, layout):
    trainer, received = run(nano, caches, replace(CONFIG, **LAYOUTS[layout]))
    assert trainer.memory.plan.layout.streamed  # or there would be nothing to compare
    (measured, painted), (expected, pictures) = looked_at(received), looked_at(resident[1])
    assert measured == expected and len(measured) == 4
    for ours, theirs in zip(painted, pictures, strict=True):
        assert torch.equal(ours.painted, theirs.painted) and torch.equal(ours.base, theirs.base)
    assert len(painted) == 6 and not torch.equal(painted[-1].painted, painted[-1].base)
    assert same_lora(trainer, resident[0])
    assert not [m for m in trainer.model.model.modules() if "forward" in m.__dict__]


@pytest.mark.long
def test_looking_changes_nothing_of_a_streamed_run(nano, caches, resident):
    unwatched = replace(CONFIG, offload="all", validation_loss=ValidationLossSettings(), validation_items=0)
    trainer, received = run(nano, caches, unwatched, painting=None)
    assert looked_at(received) == ([], []) and same_lora(trainer, resident[0])


@pytest.mark.long
def test_previews_leave_the_ring_as_it_is(nano, caches, monkeypatch):
    made = []
    monkeypatch.setattr(streamed, "Ring", lambda *args: made.append(Ring(*args)) or made[-1])
    _, received = run(nano, caches, replace(CONFIG, offload="all"))
    assert len([e for e in received if isinstance(e, events.Previewed)]) == 3 and len(made) == 1
