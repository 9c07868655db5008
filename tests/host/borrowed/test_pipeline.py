"""Units in flight over cards: the order in which they compute, and what happens when one of them fails."""

import _thread
import gc
import random
import threading
import time
import weakref

import comfy.model_management
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flux2_train.host.borrowed import pipeline

CARDS = tuple(torch.device("cpu", number) for number in range(3))


class Watched:
    """Notes which unit goes over which card when, with a delay on each card, and what it keeps there."""

    def __init__(self, cards, seconds=lambda: 0.0):
        self.cards, self.seconds = cards, seconds
        self.here = dict.fromkeys(cards, 0)
        self.kept = dict.fromkeys(cards, 0)
        self.most_kept = dict.fromkeys(cards, 0)
        self.backward = {card: [] for card in cards}
        self.busy = dict.fromkeys(cards, 0.0)
        self.lock = threading.Lock()

    def compute(self, card, kept):
        with self.lock:
            self.here[card] += 1
            assert self.here[card] == 1  # one unit on a card
        begun = time.perf_counter()
        time.sleep(self.seconds())
        with self.lock:
            self.busy[card] += time.perf_counter() - begun
            self.kept[card] += kept
            self.most_kept[card] = max(self.most_kept[card], self.kept[card])
            self.here[card] -= 1

    def forward(self):
        for card in self.cards:
            pipeline.enter(card)
            self.compute(card, torch.is_grad_enabled())

    def unit(self, plain=0):
        """A job of so many passes without gradients before the one with."""

        def job():
            with torch.no_grad():
                for _ in range(plain):
                    self.forward()
            self.forward()
            own = pipeline.unit()
            own.lanes = Noting(own.lanes, self, own.number)
            pipeline.backward(lambda: None)
            return own.number

        return job


class Noting:
    """The lanes, of which a unit goes backward over each card as ``watched`` does."""

    def __init__(self, lanes, watched, unit):
        self.lanes, self.watched, self.unit = lanes, watched, unit

    def __getattr__(self, name):
        return getattr(self.lanes, name)

    def done(self, card):
        self.watched.compute(card, -1)
        self.watched.backward[card].append(self.unit)
        self.lanes.done(card)


@settings(max_examples=15)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=7), st.integers(2, 3), st.integers(0, 99))
def test_a_card_has_one_unit_at_a_time_and_goes_backward_in_order(plain, most, seed):
    """Whatever passes come before and however long each takes. No card keeps more than is planned for."""
    dice = random.Random(seed)
    watched = Watched(CARDS, lambda: dice.random() / 1000)
    assert pipeline.in_flight(CARDS, [watched.unit(count) for count in plain], most) == list(range(len(plain)))
    assert all(order == list(range(len(plain))) for order in watched.backward.values())
    assert all(kept <= min(most, 3 - place) for place, kept in enumerate(watched.most_kept.values()))
    assert not any(watched.kept.values())
    assert pipeline.unit() is None and threading.active_count() < 30


@pytest.mark.parametrize("count", [2, 3])
def test_cards_wait_as_little_as_in_1f1b(count):
    """With M units over S cards each card computes for M of M + S - 1 turns; one after the other for M of M S."""
    units, cards, turn = 4, CARDS[:count], 0.02
    watched = Watched(cards, lambda: turn / 2)
    begun = time.perf_counter()
    pipeline.in_flight(cards, [watched.unit()] * units, count)
    took = time.perf_counter() - begun
    print(f"{units} units over {count} cards: {took / turn:.1f} turns, {units + count - 1} in theory")
    assert units + count - 1 <= took / turn < 0.5 * (units + count - 1 + units * count)
    assert all(busy >= units * turn for busy in watched.busy.values())


def test_the_graph_is_cut_and_gradients_are_the_same():
    weights = [torch.tensor([float(n + 2)], requires_grad=True) for n in range(2)]

    def job(x):
        def run():
            pipeline.enter(CARDS[0])
            stream, other = weights[0] * x, weights[0] * 0
            (stream, other), old = pipeline.unit().cut(CARDS[1], stream, other), stream
            assert stream.is_leaf is False and stream.grad_fn is not old.grad_fn
            pipeline.enter(CARDS[1])
            loss = (weights[1] * stream * stream).sum()  # ``other`` gets no gradient
            pipeline.backward(loss.backward)

        return run

    pipeline.in_flight(CARDS[:2], [job(1.0), job(3.0)], 2)
    assert [w.grad.item() for w in weights] == [2 * 2 * 3 * (1 + 9), 4 * (1 + 9)]


class Cancelled(Exception):
    pass


def failing(error, seconds=0.0):
    def job():
        pipeline.enter(CARDS[0])
        time.sleep(seconds)
        raise error

    return job


def test_an_error_stops_all_units_and_comes_out_itself():
    watched, before = Watched(CARDS, lambda: 0.002), threading.active_count()
    with pytest.raises(Cancelled):
        pipeline.in_flight(CARDS, [watched.unit(), failing(Cancelled()), *[watched.unit()] * 50], 3)
    assert threading.active_count() == before and len(watched.backward[CARDS[0]]) <= 1


def wait_for(condition):
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)


def test_ctrl_c_stops_all_units():
    watched, before = Watched(CARDS, lambda: 0.002), threading.active_count()

    def job():
        pipeline.enter(CARDS[0])
        _thread.interrupt_main()

    with pytest.raises(KeyboardInterrupt):
        pipeline.in_flight(CARDS, [watched.unit(), job, *[watched.unit()] * 500], 3)
    done = {card: len(units) for card, units in watched.backward.items()}
    assert not any(watched.here.values()) and done[CARDS[0]] < 400  # nothing computes any more
    wait_for(lambda: threading.active_count() == before)  # an interrupted join may return while a thread ends
    assert done == {card: len(units) for card, units in watched.backward.items()}


def test_ctrl_c_while_threads_start_begins_no_unit(monkeypatch):
    start, begun, ran = threading.Thread.start, [], []

    def start_and_interrupt(thread):
        start(thread)
        begun.append(thread)
        if len(begun) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", start_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        pipeline.in_flight(CARDS, [lambda: ran.append(0)] * 50, 3)
    wait_for(lambda: not any(thread.is_alive() for thread in begun))
    assert len(begun) == 3 and not ran


def test_a_cancel_is_heard_beside_a_lack_of_memory():
    both = threading.Barrier(2)

    def job(error):
        def run():
            both.wait(10)
            raise error

        return run

    for errors in ((MemoryError(), Cancelled()), (Cancelled(), MemoryError())):
        with pytest.raises(Cancelled):
            pipeline.in_flight(CARDS, [*map(job, errors)], 2)
    with pytest.raises(comfy.model_management.OOM_EXCEPTION):
        pipeline.in_flight(CARDS, [failing(comfy.model_management.OOM_EXCEPTION("full"))], 2)


def test_frames_of_a_failed_unit_are_let_go():
    """A step is repeated with less memory only when the tensors of its first attempt are gone."""
    found = []

    def job():
        activations = torch.zeros(4)
        found.append(weakref.ref(activations))
        raise MemoryError

    gc.disable()
    try:
        with pytest.raises(MemoryError):
            pipeline.in_flight(CARDS, [job], 2)
        assert found[0]() is None
    finally:
        gc.enable()


def test_what_units_share_is_computed_once_and_no_card_is_held_meanwhile():
    values, calls = {}, []

    def compute():
        calls.append(1)
        time.sleep(0.01)
        with torch.no_grad():
            for card in CARDS:  # the unit that waits may not hold one of them
                pipeline.enter(card)
        return 7

    def job():
        pipeline.enter(CARDS[0])
        found = pipeline.once(values, "name", compute)
        pipeline.enter(CARDS[-1])
        pipeline.backward(lambda: None)
        return found

    assert pipeline.in_flight(CARDS, [job] * 5, 3) == [7] * 5 and len(calls) == 1
    assert pipeline.once(values, "name", compute) == 7 and pipeline.once({}, "name", lambda: 8) == 8


def test_threads_have_the_modes_of_training():
    def job():
        pipeline.enter(CARDS[0])
        modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        pipeline.backward(lambda: None)
        return modes

    with torch.inference_mode():
        assert pipeline.in_flight(CARDS, [job], 2) == [(True, False)]
