"""Checkpoints: when they are due, which stay, and that they are whole."""

import json
import threading
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from flux2_train.runs import checkpoints
from flux2_train.runs.checkpoint_writer import CheckpointWriter
from flux2_train.runs.checkpoints import About, DamagedCheckpoint, Snapshot
from flux2_train.settings.saving import CheckpointSettings
from flux2_train.train import packing

NEVER = CheckpointSettings(every_minutes=0)

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
tensors = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.uint8, torch.int64, torch.bool]).flatmap(
    lambda dtype: st.lists(st.integers(0, 3), max_size=3).map(lambda shape: torch.ones(shape).to(dtype))
)
states = st.recursive(
    scalars | tensors,
    lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple)
    | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return type(b) is dict and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@given(states)
def test_any_state_comes_back_with_its_types_and_bits(state):
    packed, found = packing.pack(state)
    assert same(state, packing.unpack(json.loads(json.dumps(packed)), found))


def test_what_a_checkpoint_cannot_hold_is_named():
    with pytest.raises(TypeError, match="optimizer.state is set"):
        packing.pack({"optimizer": {"state": {1}}})


def snapshot(step, loss=None, size=1000):
    about = About(step, 100, {"training": {}}, "fingerprint", 1, loss)
    state = {"step": step, "moments": torch.full((5,), -float(step)), "weights": torch.full((size,), float(step))}
    return Snapshot.of(about, state)


def test_a_file_says_what_it_is_without_its_tensors(tmp_path):
    path = snapshot(7, 0.25).write(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000007.safetensors"]
    found = checkpoints.read(path)
    assert found.about == About(7, 100, {"training": {}}, "fingerprint", 1, 0.25)
    assert torch.equal(found.load()["weights"], torch.full((1000,), 7.0))
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()[checkpoints.META])["state"]["step"] == 7


def test_no_single_flipped_bit_is_taken_for_what_was_written(tmp_path):
    """Wherever it is: in the header's numbers, in the state's JSON, in the tensors."""
    path = snapshot(7, 0.25, size=10).write(tmp_path)
    whole, about = path.read_bytes(), checkpoints.read(path).about
    state, found = checkpoints.read(path).load(), 0
    for place in range(len(whole)):
        data = bytearray(whole)
        data[place] ^= 1 << place % 8
        path.write_bytes(data)
        try:
            read = checkpoints.read(path)
            assert read.about == about and same(read.load(), state), place  # "format" is nobody's business
        except DamagedCheckpoint:
            found += 1
    assert found > 0.95 * len(whole)


def test_what_was_loaded_stays_whatever_becomes_of_the_file(tmp_path):
    path = snapshot(7).write(tmp_path)
    state = checkpoints.read(path).load()
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(state["weights"], torch.full((1000,), 7.0))


def test_another_version_is_told(tmp_path):
    path = replace(snapshot(1), about=replace(snapshot(1).about, version=99)).write(tmp_path)
    with pytest.raises(DamagedCheckpoint, match="its version is 99, this pack reads 2"):
        checkpoints.read(path)


def drive(writer, losses):
    """Every step with its validation loss or None. Returns the steps whose checkpoints were told."""
    events = [e for step, loss in enumerate(losses, 1) for e in done(writer, step, loss)]
    events += writer.now(len(losses))
    return [event.step for event in events]


def done(writer, step, loss):
    writer.step, writer.loss = step, loss
    yield from writer.after(step, loss)
    if writer.writing:  # let each write end, so that what is due is written
        writer.writing.result()


def writer(folder, config, epoch=1):
    made = CheckpointWriter(folder, config, epoch, lambda: snapshot(made.step, made.loss))
    return made


@pytest.mark.parametrize("config, steps, kept", [
    (NEVER, [10], [10]), (replace(NEVER, every_steps=4), [4, 8, 10], [8, 10]),
    (replace(NEVER, every_epochs=1), [3, 6, 9, 10], [9, 10]), (replace(NEVER, every_steps=2, keep=0), [], []),
    (replace(NEVER, every_minutes=1e-9, keep=3), [*range(1, 11)], [8, 9, 10]),
])  # fmt: skip
def test_when_they_are_due_and_how_many_stay(tmp_path, config, steps, kept):
    ours = writer(tmp_path, config, epoch=3)
    assert drive(ours, [None] * 10) == steps
    assert [checkpoints.step_of(p) for p in checkpoints.paths(tmp_path)] == kept


def test_the_best_stays_however_old(tmp_path):
    losses = [0.9, None, 0.5, None, 0.7, None, 0.6, None]
    ours = writer(tmp_path, replace(NEVER, every_steps=2, keep=1))
    assert drive(ours, losses) == [1, 2, 3, 4, 6, 8]
    assert [checkpoints.step_of(p) for p in checkpoints.paths(tmp_path)] == [3, 8]
    assert checkpoints.step_of(ours.best_path()) == 3
    again = writer(tmp_path, NEVER)  # a run that is taken up knows it still
    assert again.best == 0.5 and again.best_path() == ours.best_path()
    assert writer(tmp_path, replace(NEVER, keep_best=False)).best_path() is not None


def test_the_state_is_the_one_at_the_step_and_the_run_does_not_wait(tmp_path):
    weights, write, gate = torch.zeros(10), Snapshot.write, threading.Event()

    class Slow(Snapshot):
        def write(self, folder):
            assert gate.wait(30)
            return write(self, folder)

    def take():
        return Slow(*vars(Snapshot.of(About(int(weights[0]), 9, {}, "", 1), {"weights": weights})).values())

    ours = CheckpointWriter(tmp_path, replace(NEVER, every_steps=1), 1, take)
    for step in (1, 2, 3):
        weights.fill_(step)
        assert list(ours.after(step)) == []  # the first is still being written; 2 and 3 wait
    gate.set()
    assert [e.step for e in ours.now(3)] == [1, 3]
    found = checkpoints.read(checkpoints.paths(tmp_path)[0]).load()
    assert found["weights"].tolist() == [1.0] * 10


def test_a_checkpoint_that_is_due_waits_for_the_one_that_is_being_written(tmp_path):
    """Due at every second step; the one of step 4 is made up for after the next step."""
    write, gate = Snapshot.write, threading.Event()

    class Slow(Snapshot):
        def write(self, folder):
            assert gate.wait(30)
            return write(self, folder)

    def take():
        return Slow(*vars(snapshot(ours.step)).values())

    ours = CheckpointWriter(tmp_path, replace(NEVER, every_steps=2), 1, take)
    events = []
    for step in (2, 3, 4, 5):
        ours.step = step
        if step == 5:
            gate.set()
            ours.writing.result()
        events += ours.after(step)
    assert [event.step for event in [*events, *ours.settled()]] == [2, 5]
