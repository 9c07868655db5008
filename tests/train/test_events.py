"""Every type of event comes from a real run and says what happened; there are no others, and the docs list them."""

import typing
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from bench.encoding import encode_text
from flux2_train import events
from flux2_train.runs.folder import RunFolder
from flux2_train.runs.live.asking import ask
from flux2_train.runs.prepare import new_trainer
from flux2_train.runs.resume import AUTO
from flux2_train.runs.session import train
from flux2_train.settings.objective import GuidanceSettings
from flux2_train.settings.previews import PreviewSettings, Prompt, ValidationLossSettings
from flux2_train.settings.steering import Change, Request
from flux2_train.settings.training import TrainingSettings
from flux2_train.train.preview_request import PreviewRequest

pytestmark = pytest.mark.long  # a run on nano with previews, in the module's fixture
ROOT = Path(__file__).resolve().parents[2]
DECLARED = typing.get_args(events.Event)
PROMPT = "zbot on red"
STEPS, CUT = 3, 2
CONFIG = TrainingSettings(
    name="told", steps=STEPS, rank=2, learning_rate=2e-3, validation_items=1,
    checkpointing=False, guidance=GuidanceSettings(2.0),
    validation_loss=ValidationLossSettings(per_image=True),
)  # fmt: skip
PREVIEWS = PreviewSettings((Prompt(PROMPT),), width=32, height=32, steps=1, every=0, at_start=False)


class Told(list):
    """A listener that keeps what it is told, and ends the run once after a step."""

    def __init__(self):
        super().__init__()
        self.end_at = CUT

    def __call__(self, event):
        self.append(event)
        if isinstance(event, events.Started):
            self.folder = RunFolder(event.folder)
        if event == events.Completed(1) and self.end_at:
            ask(self.folder, Request("change", Change(learning_rate=3e-3)))
        if isinstance(event, events.Completed) and event.step == self.end_at:
            self.end_at = None
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def nano(brief_nano):
    return brief_nano


@pytest.fixture(scope="module")
def received(nano, robot, tmp_path_factory):
    """A run on nano that is interrupted after its second step and queued again, event by event."""
    place, listen = tmp_path_factory.mktemp("told"), Told()
    with torch.inference_mode():
        more = {PROMPT: encode_text(nano.clip, PROMPT)}
        embeds = replace(robot.embeds, embeds={**robot.embeds.embeds, **more})

        def session():
            validation = PreviewRequest(PREVIEWS, nano.vae)
            trainer = new_trainer(nano.model, embeds, robot.latents, CONFIG, previews=validation)
            return train(trainer, place / "loras", place / "runs", listen, AUTO)

        with pytest.raises(KeyboardInterrupt):
            session()
        session()
    return list(listen)


EXPECTED = {
    events.Started: lambda found: [e.folder.name for e in found] == ["told", "told"],
    events.Resumed: lambda found: (
        [(e.step, e.total, e.path.name) for e in found] == [(CUT, STEPS, "step_00000002.safetensors")]
    ),
    events.Checkpointed: lambda found: [e.step for e in found] == [CUT, STEPS] and found[-1].path.is_file(),
    events.Phase: lambda found: [e.text for e in found].count("loading") == 2,
    events.Planned: lambda found: len(found) == 2 and all("s per step" in e.text for e in found),
    events.Warned: lambda found: len(found) == 2 and all("has no guidance input" in e.text for e in found),
    events.Stepped: lambda found: (
        [(e.step, e.total) for e in found] == [(1, STEPS), (2, STEPS), (3, STEPS)]
        and all(e.loss > 0 and e.smoothed > 0 and e.preservation == 0 and e.seconds > 0 for e in found)
    ),
    events.Validated: lambda found: (
        [(e.step, e.held_out) for e in found] == [(0, False), (STEPS, False)] and all(e.loss > 0 for e in found)
    ),
    events.SelectivityMeasured: lambda found: (
        [e.step for e in found] == [STEPS] and all(e.taught > 0 and e.leaked > 0 for e in found)
    ),
    events.BestSoFar: lambda found: [e.step for e in found] == [STEPS],
    events.Previewed: lambda found: [(e.step, [p.label for p in e.pictures]) for e in found] == [(STEPS, [PROMPT])],
    events.ImagesMeasured: lambda found: [(e.step, len(e.images)) for e in found] == [(0, 6), (STEPS, 6)],
    events.Steered: lambda found: [(e.step, e.text) for e in found] == [(2, "learning rate 0.003")],
    events.Recorded: lambda found: (
        [line["status"] for e in found for line in e.lines if line["kind"] == "ended"] == ["stopped", "finished"]
    ),
    events.Completed: lambda found: [e.step for e in found] == [1, 2, 3],
    events.Saved: lambda found: (
        [(e.path.name, e.stopped) for e in found] == [("told_step2.safetensors", True), ("told.safetensors", False)]
    ),
}


@pytest.mark.parametrize("kind", DECLARED, ids=lambda kind: kind.__name__)
def test_each_type_of_event_is_told_where_it_happens(received, kind):
    found = [event for event in received if type(event) is kind]
    assert EXPECTED[kind](found), found


def test_no_other_type_is_told(received):
    assert {type(event) for event in received} == set(DECLARED)


def test_what_happens_is_told_in_its_order(received):
    """Loading before steps; after a step what it was looked at for; a run's folder first, its LoRA last.

    Lines of the record come behind what they are about.
    """
    received = [event for event in received if type(event) is not events.Recorded]
    kinds = [type(event) for event in received]
    again = kinds.index(events.Started, 1)
    first, second = received[:again], received[again:]
    for part, stopped in ((first, True), (second, False)):
        assert type(part[0]) is events.Started and part[-1] == events.Saved(part[-1].path, stopped)
        assert type(part[-2]) is events.Checkpointed
        assert kinds.index(events.Planned) < kinds.index(events.Validated) < kinds.index(events.Stepped)
    last = [kind for kind in map(type, second) if kind is not events.Phase][-9:]
    assert last == [
        events.Stepped, events.Validated, events.SelectivityMeasured, events.BestSoFar, events.ImagesMeasured,
        events.Previewed, events.Completed, events.Checkpointed, events.Saved,
    ]  # fmt: skip


@pytest.mark.parametrize("kind", DECLARED, ids=lambda kind: kind.__name__)
def test_the_docs_list_it_with_its_fields(kind):
    listed = f"| `{kind.__name__}({', '.join(field.name for field in fields(kind))})` |"
    assert listed in (ROOT / "docs" / "engine.md").read_text(encoding="utf-8")
