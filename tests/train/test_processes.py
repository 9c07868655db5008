"""One loop for one process and for several: the split changes nothing, and nothing is left of accelerate's state."""

import os
import pickle
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from children import run_in_processes
from hypothesis import given
from hypothesis import strategies as st
from support import brief_flux2, tiny_caches

from flux2_train.data.order import epoch_batches
from flux2_train.data.samples import samples
from flux2_train.events import Phase, Planned, Stepped, Validated
from flux2_train.runs.prepare import new_trainer
from flux2_train.settings.adapter import AdapterSettings
from flux2_train.settings.objective import PreservationSettings
from flux2_train.settings.routing import RoutingSettings
from flux2_train.settings.training import TrainingSettings
from flux2_train.train import processes

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).resolve().parents[1] / "processes" / "train_tiny.py"
CONFIG = TrainingSettings(
    steps=0, epochs=1, rank=2, learning_rate=2e-3, batch=4, preservation=0.5, validation_items=3, seed=5,
    preservation_options=PreservationSettings(every=1),
)  # fmt: skip
ADAPTERS_AGREE = 1e-4  # relative, by norm


@pytest.fixture(scope="module")
def caches():
    """(embeds, latents), not of the pictures but as good to compute with: five items of three shapes, three times."""
    return tiny_caches(repeats=3)


def train(caches, config):
    """(trainer, events) of a run in this process, as a node runs it."""
    trainer = new_trainer(brief_flux2(), *caches, config)
    with torch.inference_mode(), closing(trainer.run()) as run:
        return trainer, list(run)


@pytest.fixture(scope="module")
def whole(caches):
    return train(caches, CONFIG)


def matrices(trainer):
    return {name: (part.down, part.up) for name, part in trainer.adapters.parts().items()}


def assert_close(ours, expected):
    """By norm: where a gradient is next to nothing, Adam makes a whole step of its rounding."""
    assert ours.keys() == expected.keys()
    for name, pair in expected.items():
        for a, b in zip(ours[name], pair, strict=True):
            assert (a - b).norm() < ADAPTERS_AGREE * b.norm(), name


def assert_same_preservation(ours, expected):
    """Preservation is the mean square of what the adapters do, and each of the two has it from adapters of its own.

    What a pair does is its product, so it agrees to twice what its matrices agree to, and its square to four times
    that. Beside it stands the cancellation: of two predictions of size 1 with one rounding each, the difference, of
    size sqrt(preservation), is off by 2 eps, and its square by twice that in relation to it.
    """
    assert max(expected) > 0  # the adapters have left the base model
    for a, b in zip(ours, expected, strict=True):
        cancelled = 4 * torch.finfo(torch.float32).eps / b**0.5 if b else 0
        assert a == pytest.approx(b, rel=4 * ADAPTERS_AGREE + cancelled)


def test_steps_have_more_and_fewer_samples_than_processes_can_share(caches):
    sizes = {len(step) for step in epoch_batches(samples(*caches), 4, CONFIG.seed, 0)}
    assert sizes == {1, 3, 4}


@pytest.mark.long
@pytest.mark.parametrize("batch, accumulate", [(2, 2), (1, 4)])
def test_accumulation_is_a_larger_batch(caches, whole, batch, accumulate):
    trainer, events = train(caches, replace(CONFIG, batch=batch, accumulate=accumulate))
    assert_close(matrices(trainer), matrices(whole[0]))
    assert trainer.history.losses == pytest.approx(whole[0].history.losses, rel=1e-5)
    assert_same_preservation(preservation(events), preservation(whole[1]))


def launch(tmp_path, caches, config, count=2):
    """What each of the processes gave: (matrices, events, losses)."""
    (tmp_path / "caches").write_bytes(pickle.dumps(caches))
    done = run_in_processes(count, SCRIPT, tmp_path / "caches", tmp_path / "out", config.to_json())
    assert done.returncode == 0, done.stderr
    return [pickle.loads((tmp_path / f"out.{i}").read_bytes()) for i in range(count)]


def without_phases(events):
    return [type(event) for event in events if not isinstance(event, Phase)]


@pytest.mark.long
def test_two_processes_are_one_with_twice_the_batch(tmp_path, caches, whole):
    """In every second step one of them has no sample left."""
    (ours, received, losses), (others, silent, _) = launch(tmp_path, caches, replace(CONFIG, batch=2))
    assert (tmp_path / "out.order").read_text() == "01"  # what the main process shall do first, it did first
    trainer, events = whole
    assert_close(ours, matrices(trainer))
    assert all(torch.equal(a, b) for name in ours for a, b in zip(ours[name], others[name], strict=True))
    assert losses == pytest.approx(trainer.history.losses, rel=1e-5)
    assert silent == [] and without_phases(received) == without_phases(events)  # each validates its own share
    assert validation(received) == pytest.approx(validation(events), rel=1e-5)
    assert_same_preservation(preservation(received), preservation(events))


@pytest.mark.slow
@pytest.mark.parametrize(
    "count, changes",
    [
        (4, {"batch": 1}),
        (4, {"batch": 1, "preservation": 0.0}),
        (4, {"batch": 1, "adapter": AdapterSettings(dora=True)}),
        (2, {"batch": 1, "accumulate": 2}),
        (2, {"batch": 2, "routing": RoutingSettings(0.5, 0, -1, until=100.0)}),
        (2, {"batch": 2, "compile": "on"}),
    ],
    ids=["preservation", "plain", "dora", "accumulate", "token routing", "compiled"],
)
def test_any_number_of_processes_learns_the_same(tmp_path, caches, count, changes):
    config = replace(CONFIG, **changes)
    found = launch(tmp_path, caches, config, count)
    trainer, _ = train(caches, replace(config, batch=4, accumulate=1))
    for ours, _, losses in found:
        assert_close(ours, matrices(trainer))
        assert losses == pytest.approx(trainer.history.losses, rel=1e-5)
    plans = [event.text for event in found[0][1] if isinstance(event, Planned)]
    assert all("compiled by inductor" in plan for plan in plans) == (config.compile == "on")


@pytest.mark.slow
def test_processes_choose_the_same_layers_for_8_bits(tmp_path, caches):
    """What each has found and how long it took goes to all; whether 8 bits are faster here is theirs to find."""
    config = replace(CONFIG, batch=2, speed="certified")
    (ours, received, losses), (others, _, other_losses) = launch(tmp_path, caches, config)
    assert all(torch.equal(a, b) for name in ours for a, b in zip(ours[name], others[name], strict=True))
    assert losses == other_losses
    lines = [line for event in received if isinstance(event, Planned) for line in event.text.splitlines()]
    before, after = [line for line in lines if line.startswith("products ")]
    assert before.endswith("until 8 bits are compared with them")
    assert "exact products: 8 bits take " in after or "8-bit products in 12 of 12 layers, cosine" in after


def preservation(events):
    return [event.preservation for event in events if isinstance(event, Stepped)]


def validation(events):
    return [event.loss for event in events if isinstance(event, Validated)]


@given(count=st.integers(1, 40), batch=st.integers(1, 5), number=st.integers(1, 7))
def test_shares_hold_every_sample_once_and_equally_many_batches(count, batch, number):
    parts = [processes.shares(Place(number, index), count, batch) for index in range(number)]
    seen = [row for part in parts for rows, weight in part if weight for row in rows]
    assert sorted(seen) == list(range(count))
    assert {weight for part in parts for _, weight in part} <= {0.0, 1 / count}
    assert len({len(part) for part in parts}) == 1
    assert all(1 <= len(rows) <= batch for part in parts for rows, _ in part)


@dataclass(frozen=True)
class Place:
    """One process among several, as ``shares`` asks for it."""

    num_processes: int
    process_index: int


def test_a_run_leaves_nothing_of_accelerate_behind(caches, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")  # as some containers have it
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "3")
    environment = dict(os.environ)
    for state in processes.STATES:
        monkeypatch.setattr(state, "_shared_state", {})
    before = matrices(train(caches, replace(CONFIG, steps=1))[0])
    assert not any(state._shared_state for state in processes.STATES)
    assert not torch.distributed.is_initialized()
    assert dict(os.environ) == environment
    monkeypatch.undo()
    assert_close(matrices(train(caches, replace(CONFIG, steps=1))[0]), before)


def test_anothers_accelerator_stays_as_it_was(caches, monkeypatch):
    for state in processes.STATES:
        monkeypatch.setattr(state, "_shared_state", {})
    theirs = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=7)
    before = [dict(state._shared_state) for state in processes.STATES]
    trainer, _ = train(caches, replace(CONFIG, steps=1))
    assert [dict(state._shared_state) for state in processes.STATES] == before
    assert (theirs.mixed_precision, theirs.gradient_accumulation_steps) == ("bf16", 7)
    assert (trainer.accelerator.mixed_precision, trainer.accelerator.gradient_accumulation_steps) == ("no", 1)
