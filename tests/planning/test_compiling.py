"""compile 'auto' decides by figures: seconds of steps without and with compiled blocks, and how many are left."""

import pytest

from flux2_train.planning.compiling import FEW, LONGEST, TAKES, Trial

SMALL, LARGE = "small", "large"


def after(trial, times, total=1000):
    """Give a trial steps of (kind, seconds); returns the numbers of those that changed something."""
    return [n for n, (kind, seconds) in enumerate(times, 1) if trial.add(kind, seconds, total - n, total)]


def steps(seconds, count=FEW, kind=SMALL):
    return [(kind, seconds)] * count


def begun(seconds=1.0, total=1000):
    """A trial in which steps without compiled blocks were timed, after a first one that took longer."""
    trial = Trial()
    assert after(trial, [*steps(50.0, 1), *steps(seconds)], total) == [1 + FEW]
    return trial


def test_the_first_step_is_not_timed_and_then_blocks_are_compiled():
    trial = begun()
    assert trial.trying and trial.decided is None and trial.plain == {SMALL: [1.0] * FEW}


def test_what_is_faster_is_kept_with_its_figures():
    trial = begun()
    assert after(trial, [*steps(31.0, 1), *steps(0.75)]) == [1 + FEW]
    assert trial.decided and not trial.trying
    assert trial.why == "0.75 s per step, not 1 s; 121 steps win back the 30.2 s of compiling"
    assert not after(trial, steps(9.0, 100)) and trial.decided  # decided once


@pytest.mark.parametrize("seconds", [1.0, 1.2, 0.99])
def test_what_is_not_faster_is_given_up(seconds):
    trial = begun()
    after(trial, [*steps(31.0, 1), *steps(seconds)])
    assert trial.decided is False and not trial.trying
    assert trial.why == f"compiled steps take {seconds:g} s and others 1 s"
    assert not after(trial, steps(0.1, 100)) and trial.decided is False


def test_a_run_with_too_few_steps_is_not_tried_until_it_is_made_longer():
    total = 1 + FEW + int(TAKES / 0.3)  # as many are left as win back at best what compiling takes
    trial = begun(1.0, total)
    assert not trial.trying and trial.decided is False
    assert trial.why == "200 steps of 1 s would not win back the time of compiling"
    assert not after(trial, steps(1.0, 50), total)
    assert trial.add(SMALL, 1.0, 900, total + 700) and trial.trying
    assert begun(1.0, total + 1).trying


def test_steps_are_compared_with_steps_of_their_kind():
    """Compiled steps happen to be of the larger bucket more often: their median is higher, and each kind is faster."""
    trial = Trial()
    after(trial, [*steps(9.0, 1), *steps(1.0, FEW - 1), *steps(4.0, FEW - 1, LARGE), *steps(1.0, 1)])
    assert trial.trying
    after(trial, [*steps(31.0, 1), *steps(0.8, FEW - 1), *steps(20.0, 1, LARGE), *steps(3.2, 50, LARGE)])
    assert trial.decided is None
    after(trial, steps(0.8, 1))
    assert trial.decided and trial.why.startswith("0.8 s per step, not 1 s; 235 steps win back the 47 s")


def test_kinds_that_never_come_twice_are_compared_together():
    trial = Trial()
    after(trial, [(n, 1.0) for n in range(LONGEST + 1)])
    assert trial.trying
    after(trial, [(n % 60, 0.5) for n in range(LONGEST + 59)])
    assert trial.decided is None
    after(trial, [(59, 0.5)])
    assert trial.decided and trial.why.startswith("0.5 s per step, not 1 s")


def test_a_resumed_run_takes_the_decision_and_begins_an_undecided_trial_anew():
    decided = begun()
    after(decided, [*steps(31.0, 1), *steps(0.75)])
    resumed = Trial()
    resumed.load_state_dict(decided.state_dict())
    assert resumed.decided and resumed.why == decided.why and not after(resumed, steps(9.0, 50))
    anew = Trial()
    anew.load_state_dict(begun().state_dict())
    assert anew.decided is None and not anew.trying and not anew.plain


def test_a_closed_trial_is_not_begun():
    trial = Trial()
    trial.closed = True
    assert not after(trial, steps(1.0, 50)) and trial.decided is None
