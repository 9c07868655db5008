"""Other prompts are painted from the next step on: known texts at once, new ones once they are encoded by the file."""

from dataclasses import replace

import pytest
import torch
from test_steering import Asking

from bench.encoding import encode_text
from flux2_train import events
from flux2_train.host import describe
from flux2_train.runs.prepare import new_trainer
from flux2_train.runs.resume import NEW
from flux2_train.runs.session import train
from flux2_train.settings import job
from flux2_train.settings.previews import PreviewSettings, Prompt
from flux2_train.settings.saving import SaveSettings
from flux2_train.settings.steering import Change, Request
from flux2_train.settings.training import TrainingSettings
from flux2_train.train.preview_request import PreviewRequest

pytestmark = pytest.mark.long
KNOWN, NEW_TEXT = "zbot on red", "a green hat"
CONFIG = TrainingSettings(name="painted", steps=4, rank=2, learning_rate=2e-3, validation_items=0, checkpointing=False,
                          save=SaveSettings(certificate=False))  # fmt: skip
PREVIEWS = PreviewSettings((Prompt(KNOWN),), width=32, height=32, steps=1, every=0, at_start=False)
PROMPTS = Request("change", Change(prompts=(NEW_TEXT, KNOWN)))


@pytest.fixture(scope="module")
def embeds(brief_nano, robot):
    with torch.inference_mode():
        more = {KNOWN: encode_text(brief_nano.clip, KNOWN)}
    made_by = describe.text_encoder_file(brief_nano.clip)
    return replace(robot.embeds, embeds={**robot.embeds.embeds, **more}, made_by=made_by)


def run(nano, robot, embeds, place, asks, changes=()):
    """The pictures of each step at which some were painted, and the listener of the run."""
    listener = Asking(asks)
    with torch.inference_mode():
        trainer = new_trainer(nano.model, embeds, robot.latents, CONFIG, previews=PreviewRequest(PREVIEWS, nano.vae))
        trainer.repeat(changes)
        train(trainer, place / "loras", place / "runs", listener, NEW)
    return {event.step: event.pictures for event in listener.of(events.Previewed)}, listener


def test_a_new_prompt_is_encoded_and_painted_and_the_job_paints_it_again(brief_nano, robot, embeds, tmp_path):
    painted, listener = run(brief_nano, robot, embeds, tmp_path, {2: [PROMPTS], 3: [Request("preview")]})
    assert not listener.of(events.Warned) or all("guidance" in e.text for e in listener.of(events.Warned))
    assert {step: [(p.number, p.label) for p in pictures] for step, pictures in painted.items()} == {
        3: [(2, NEW_TEXT), (1, KNOWN)], 4: [(2, NEW_TEXT), (1, KNOWN)],
    }  # fmt: skip
    files = {path.name for path in listener.folder.previews.iterdir()}
    assert files == {f"{name}_{n}.png" for name in ("base", "step_000003", "step_000004") for n in (1, 2)}
    changes = job.load(listener.folder.job).changes
    assert changes == (Change(after=2, prompts=(NEW_TEXT, KNOWN)),)
    again, _ = run(brief_nano, robot, embeds, tmp_path / "again", {}, changes)
    assert list(again) == [4]
    for first, second in zip(painted[4], again[4], strict=True):
        assert torch.equal(first.painted, second.painted) and torch.equal(first.base, second.base)


def test_without_the_encoders_file_it_is_said_why_not(brief_nano, robot, embeds, tmp_path):
    unknown = replace(embeds, made_by="")
    painted, listener = run(brief_nano, robot, unknown, tmp_path, {2: [PROMPTS]})
    assert any("do not say which text encoder file made them" in e.text for e in listener.of(events.Warned))
    assert [p.label for p in painted[4]] == [KNOWN] and not job.load(listener.folder.job).changes


def test_processes_that_paint_together_encode_no_new_prompt(brief_nano, robot, embeds, tmp_path):
    """One of them would be busy with the text encoder while the others wait for its part of the base."""
    listener = Asking({2: [PROMPTS]})
    with torch.inference_mode():
        request = PreviewRequest(PREVIEWS, brief_nano.vae)
        trainer = new_trainer(brief_nano.model, embeds, robot.latents, CONFIG, previews=request)
        trainer.between_steps.previews.together = True
        train(trainer, tmp_path / "loras", tmp_path / "runs", listener, NEW)
    assert any("cannot be encoded while processes share the base" in e.text for e in listener.of(events.Warned))
    assert not job.load(listener.folder.job).changes
