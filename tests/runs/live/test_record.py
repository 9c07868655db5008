"""What a run tells is in its record: every step once, and all that a chart marks; also after a kill and a pause."""

# ruff: noqa: F401, F811 - pytest finds fixtures by the names that are imported, and gives them as arguments

import json

import pytest
from resuming import Listener, Stop, caches, model, session, trainer
from test_steering import PAUSE, RATE, Asking

from flux2_train import events
from flux2_train.errors import Paused
from flux2_train.runs.folder import RunFolder
from flux2_train.runs.live import record
from flux2_train.settings.saving import CheckpointSettings


def of(lines, kind):
    return [line for line in lines if line["kind"] == kind]


def points(lines):
    """Loss by step, as a reader adds lines up: a later line replaces what it repeats."""
    found = {}
    for line in of(lines, "steps"):
        steps = line.get("step") or range(line["first"], line["first"] + len(line["loss"]))
        found |= dict(zip(steps, line["loss"], strict=True))
    return found


def test_the_lines_that_are_told_are_those_of_the_file(trainer, tmp_path):
    made, listener = trainer(validation_items=2), Listener()
    session(made, tmp_path, listener)
    told = listener.of(events.Recorded)
    lines = [line for event in told for line in event.lines]
    folder = RunFolder(tmp_path / "runs" / "run")
    assert [json.loads(line) for line in folder.record.read_text().splitlines()] == lines
    assert [event.first for event in told] == [sum(len(e.lines) for e in told[:i]) for i in range(len(told))]
    assert list(points(lines).values()) == pytest.approx(made.history.losses, rel=1e-4)
    assert [(line["step"], line["loss"]) for line in of(lines, "validation")] == [
        (step, pytest.approx(loss, rel=1e-4)) for step, loss in made.history.validation.items()
    ]
    kinds = {line["kind"] for line in lines}
    measured = {"validation", "selectivity", "best"}
    assert kinds == {"began", "phase", "plan", "memory", "steps", *measured, "checkpoint", "saved", "ended"}
    (line,), ((step, changes),) = of(lines, "selectivity"), made.history.selectivity.items()
    assert (line["step"], line["taught"], line["leaked"]) == (
        step,
        *(pytest.approx(each, rel=1e-4) for each in changes),
    )
    assert lines[0]["kind"] == "began" and lines[-1]["kind"] == "ended"
    assert (lines[-1]["status"], lines[-1]["why"], lines[-1]["total"]) == ("finished", "", lines[0]["total"])
    assert of(lines, "memory")[0]["used"] > 1e6 < of(lines, "plan")[0]["peak"]
    read, count = record.read(folder)
    assert points(read) == points(lines) and count == len(lines) and not record.read(folder, count)[0]


def test_fast_steps_share_a_line_and_all_are_there(trainer, tmp_path, monkeypatch):
    monkeypatch.setattr(record, "EVERY", 1e9)
    session(trainer(), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "runs" / "run" / "record.jsonl").read_text().splitlines()]
    (line,) = of(lines, "steps")
    assert line["first"] == 1 and len(line["loss"]) == 5 == len(line["seconds"])


@pytest.mark.long
def test_a_run_that_goes_on_adds_to_its_record(trainer, tmp_path):
    folder = RunFolder(tmp_path / "runs" / "run")
    with pytest.raises(Paused):
        session(trainer(), tmp_path, Asking({2: [RATE], 3: [PAUSE]}))
    assert record.read(folder)[0][-1]["status"] == "paused"
    with folder.record.open("ab") as file:
        file.write(b'{"kind":"steps","fir')  # as a process leaves it that is killed
    made = trainer()
    session(made, tmp_path)
    lines, count = record.read(folder)
    assert list(points(lines).values()) == pytest.approx(made.history.losses, rel=1e-4)
    assert [line["step"] for line in of(lines, "resumed")] == [3] and len(of(lines, "ended")) == 2
    (steered,) = of(lines, "steered")
    assert (steered["step"], steered["learning_rate"], steered["total"]) == (2, 5e-4, 5)
    assert count == folder.record.read_bytes().count(b"\n")


@pytest.mark.long
def test_steps_that_are_repeated_replace_those_before(trainer, tmp_path):
    every = {"checkpoints": CheckpointSettings(every_steps=2)}
    with pytest.raises(Stop):
        session(trainer(**every), tmp_path, Listener(4))
    folder = RunFolder(tmp_path / "runs" / "run")
    (folder.checkpoints / "step_00000004.safetensors").unlink()
    made = trainer(**every)
    session(made, tmp_path)
    assert list(points(record.read(folder)[0]).values()) == pytest.approx(made.history.losses, rel=1e-4)


def test_a_long_run_is_thinned_out(tmp_path):
    folder = RunFolder(tmp_path)
    row = {"kind": "steps", "total": 10**6, "loss": [0.5] * 1000, "smoothed": [0.4] * 1000}
    lines = [json.dumps({**row, "first": first}) for first in range(1, 10**5, 1000)]
    folder.record.write_text("\n".join(lines) + "\n")
    ((line,), _) = record.read(folder)
    assert len(line["step"]) == len(line["smoothed"]) == len(line["loss"]) <= record.MOST_POINTS
    assert line["step"][:2] == [1, 6] and line["step"][-1] > 99_990


@pytest.mark.parametrize("text", ["", "\n\n", "[]\n3\n", '{"kind": 3}\n', "[" * 100_000 + "\n", "\x00\xff\n"])
def test_what_is_no_record_is_left_out(tmp_path, text):
    folder = RunFolder(tmp_path)
    folder.record.write_text(text)
    assert record.read(folder)[0] == []


def test_a_step_takes_few_bytes_on_the_way_to_the_browser(trainer, tmp_path, monkeypatch):
    """In a run of fast steps, whose losses share lines: at most 60 bytes a step, however long the run is."""
    monkeypatch.setattr(record, "EVERY", 1e9)
    made, listener = trainer(), Listener()
    session(made, tmp_path, listener)
    (line,) = of([line for event in listener.of(events.Recorded) for line in event.lines], "steps")
    many = {name: values * 200 if isinstance(values, list) else values for name, values in line.items()}
    assert len(json.dumps(many)) / len(many["loss"]) <= 60 and len(many["loss"]) == 1000
