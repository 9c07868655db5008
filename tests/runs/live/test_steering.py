"""A run is stopped, paused, saved and changed while it trains; its job repeats what was changed, to the same bits."""

# ruff: noqa: F401, F811 - pytest finds fixtures by the names that are imported, and gives them as arguments

import json

import pytest
import torch
from resuming import Listener, Stop, assert_same, caches, model, session, steps, trainer

from flux2_train import events
from flux2_train.errors import Paused, UserError
from flux2_train.runs import checkpoints
from flux2_train.runs.folder import FINISHED, PAUSED, RunFolder
from flux2_train.runs.live import record
from flux2_train.runs.live.asking import MOST_WAITING, ask
from flux2_train.settings import job
from flux2_train.settings.optimizer import OptimizerSettings
from flux2_train.settings.saving import CheckpointSettings
from flux2_train.settings.steering import CHANGE, Change, Request
from flux2_train.settings.training import TrainingSettings

RATE, STEPS = Request("change", Change(learning_rate=5e-4)), Request("change", Change(steps=8))
PAUSE, SAVE, STOP, PREVIEW = map(Request, ("pause", "save", "stop", "preview"))
COSINE = {"optimizer": OptimizerSettings(schedule="cosine", warmup=1)}


class Asking(Listener):
    """Asks the run for things while it trains the steps with these numbers; ``error`` ends it after step ``at``."""

    def __init__(self, asks, at=None):
        super().__init__(at)
        self.asks = asks

    def __call__(self, event):
        if isinstance(event, events.Started):
            self.folder = RunFolder(event.folder)
        if isinstance(event, events.Completed):  # the next step is the one in progress
            for request in self.asks.get(event.step + 1, ()):
                ask(self.folder, request)
        super().__call__(event)


def steered(trainer, place, asks, at=None, **changes):
    """The trainer and listener of a run to its end."""
    made, listener = trainer(**changes), Asking(asks, at)
    session(made, place, listener)
    return made, listener


def repeated(trainer, folder, **changes):
    """The run that the job of a folder describes, from its first step."""
    again = trainer(**changes)
    again.repeat(job.load(folder.job).changes)
    return steps(again)


def result_of(trainer):
    """The state of a run that has ended: the optimizer's part is given back then."""
    return {name: part for name, part in trainer.state_dict().items() if name != "optimizer"}


def test_another_rate_acts_from_the_next_step_on_and_the_job_repeats_it(trainer, tmp_path):
    made, listener = steered(trainer, tmp_path, {3: [RATE]})
    assert made.history.rates == [2e-3] * 3 + [5e-4] * 2
    assert json.loads(listener.folder.job.read_text())["changes"] == [
        {"after": 3, "learning_rate": 5e-4, "steps": None, "prompts": None}
    ]
    assert json.loads(listener.folder.job.read_text())["training"]["learning_rate"] == 2e-3
    assert [(event.step, event.text) for event in listener.of(events.Steered)] == [(3, "learning rate 0.0005")]
    again = repeated(trainer, listener.folder)
    assert_same(result_of(again), result_of(made))
    assert not torch.equal(*(t.state_dict()["adapter"].popitem()[1] for t in (again, steps(trainer()))))


@pytest.mark.long
@pytest.mark.parametrize("count", [8, 4], ids=["more", "fewer"])
def test_another_number_of_steps_bends_the_schedule_and_the_job_repeats_it(trainer, tmp_path, count):
    asks = {2: [Request("change", Change(steps=count)), RATE]}
    made, listener = steered(trainer, tmp_path, asks, **COSINE)
    assert made.step == made.total == count == listener.folder.about()["step"]
    assert listener.folder.about()["status"] == FINISHED
    assert_same(result_of(repeated(trainer, listener.folder, **COSINE)), result_of(made))


def test_steps_that_are_done_already_are_refused(trainer, tmp_path):
    made, listener = steered(trainer, tmp_path, {4: [Request("change", Change(steps=2))]})
    assert made.step == 5 and not made.changes
    (warned,) = listener.of(events.Warned)
    assert warned.text == "4 steps are done already: steps was not changed to 2." and warned.remedies == (CHANGE,)
    assert {"kind": "warning", "text": warned.text, "remedies": [CHANGE]} in record.read(listener.folder)[0]


def test_stop_ends_the_run_with_the_step_in_progress(trainer, tmp_path):
    made, listener = steered(trainer, tmp_path, {3: [STOP]})
    assert made.step == 3 and listener.folder.about()["status"] == FINISHED
    assert (tmp_path / "loras" / "run.safetensors").is_file()


@pytest.mark.long
@pytest.mark.parametrize("asks", [{}, {2: [RATE, STEPS]}], ids=["as it was", "changed before"])
def test_a_paused_run_goes_on_to_the_bits_of_one_that_was_not(trainer, tmp_path, asks):
    whole, _ = steered(trainer, tmp_path / "whole", asks, **COSINE)
    with pytest.raises(Paused, match=r"^Paused after step 4; Go on queues the same graph\.$"):
        steered(trainer, tmp_path, {**asks, 4: [PAUSE]}, **COSINE)
    folder = RunFolder(tmp_path / "runs" / "run")
    about = folder.about()
    assert (about["status"], about["step"], about["total"]) == (PAUSED, 4, whole.total)
    assert about["why"].startswith("Paused after step 4") and not (tmp_path / "loras").exists()
    assert [path.name for path in checkpoints.paths(folder.checkpoints)] == ["step_00000004.safetensors"]
    rest, listener = steered(trainer, tmp_path, {}, **COSINE)
    assert listener.of(events.Resumed)[0].step == 4 and rest.step == whole.step
    assert_same(result_of(rest), result_of(whole))
    assert folder.about()["status"] == FINISHED
    assert_same(result_of(repeated(trainer, folder, **COSINE)), result_of(whole))


@pytest.mark.long
def test_a_change_after_the_last_checkpoint_is_repeated_when_the_run_goes_on(trainer, tmp_path):
    """As after a power cut: the steps since the checkpoint are trained again, with the change where it was."""
    every = {"checkpoints": CheckpointSettings(every_steps=2)}
    whole, _ = steered(trainer, tmp_path / "whole", {3: [RATE]}, **every)
    with pytest.raises(Stop):
        steered(trainer, tmp_path, {3: [RATE]}, at=4, **every)
    folder = RunFolder(tmp_path / "runs" / "run")
    checkpoints.paths(folder.checkpoints)[-1].unlink()  # of step 4; that of step 2 is left
    assert [path.name for path in checkpoints.paths(folder.checkpoints)] == ["step_00000002.safetensors"]
    rest, _ = steered(trainer, tmp_path, {}, **every)
    assert_same(result_of(rest), result_of(whole))


@pytest.mark.long
def test_a_value_that_the_graph_has_been_given_since_is_newer_than_a_change(trainer, tmp_path):
    with pytest.raises(Paused):
        steered(trainer, tmp_path, {2: [RATE, STEPS], 3: [PAUSE]})
    rest, _ = steered(trainer, tmp_path, {}, learning_rate=1e-3)
    assert rest.history.rates == [2e-3] * 2 + [5e-4] + [1e-3] * 5 and rest.step == 8


@pytest.mark.long
def test_save_now_writes_a_checkpoint_and_the_run_goes_on(trainer, tmp_path):
    never = CheckpointSettings(every_steps=0, every_minutes=1e4, keep=5)
    made, listener = steered(trainer, tmp_path, {2: [SAVE]}, checkpoints=never)
    assert [event.step for event in listener.of(events.Checkpointed)] == [2, 5] and made.step == 5


@pytest.mark.parametrize("request_, words", [
    (PAUSE, "Checkpoints are off"), (SAVE, "Checkpoints are off"), (PREVIEW, "paints no previews"),
    (Request("change", Change(prompts=("a cat",))), "paints no previews"),
], ids=["pause", "save", "preview", "prompts"])  # fmt: skip
def test_what_cannot_be_done_is_told_and_the_run_goes_on(trainer, tmp_path, request_, words):
    made, listener = steered(trainer, tmp_path, {2: [request_]}, checkpoints=CheckpointSettings(keep=0))
    assert made.step == 5 and not made.changes
    assert [words in event.text for event in listener.of(events.Warned)] == [True]


def test_a_damaged_request_is_told_and_removed(trainer, tmp_path):
    class Damaging(Asking):
        def __call__(self, event):
            super().__call__(event)
            if isinstance(event, events.Completed) and event.step == 1:
                self.folder.asked.mkdir()
                for number, text in enumerate(("{", "[]", '{"ask": "sing"}', '{"ask": "change"}', "\ud800")):
                    (self.folder.asked / f"{number}.json").write_text(text, errors="surrogatepass")

    listener = Damaging({})
    session(trainer(), tmp_path, listener)
    assert len(listener.of(events.Warned)) == 5 and not listener.folder.asked.exists()


def test_only_a_run_that_is_trained_can_be_asked_and_not_too_often(tmp_path):
    folder = RunFolder.create(tmp_path, "run")
    with pytest.raises(UserError, match="No run run is being trained"):
        ask(folder, PAUSE)
    with folder.held():
        for _ in range(MOST_WAITING):
            ask(folder, SAVE)
        with pytest.raises(UserError, match="100 requests wait"):
            ask(folder, SAVE)
    with folder.held():
        assert not folder.asked.exists()  # an old request does not act on a run that goes on


@pytest.mark.parametrize("values, words", [
    ({"learning_rate": -1.0}, "learning_rate is -1; it must lie between 0 and 1"),
    ({"learning_rate": 2.0}, "lie between"), ({"steps": 0}, "steps is 0"), ({"steps": 10_000_000}, "steps is 1e.07"),
    ({"prompts": ()}, "There are 0 prompts"), ({"prompts": ("a", " ")}, "none of them empty"),
    ({"prompts": ("a" * 10_001,)}, "longer than"), ({}, "at least one"), ({"after": -1, "steps": 3}, "after is -1"),
], ids=lambda value: str(value)[:40])  # fmt: skip
def test_a_change_that_makes_no_sense_is_refused(values, words):
    with pytest.raises(UserError, match=words):
        Request("change", Change(**values))


def test_the_limits_are_those_of_the_settings():
    for name, value in (("learning_rate", 1.0), ("steps", 1_000_000)):
        assert getattr(TrainingSettings(**{name: value}), name) == getattr(Change(**{name: value}), name)
