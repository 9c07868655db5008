"""One model over several cards: every byte lies on one of them, by their free memory, and the seconds are of all."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux2_train.errors import UserError
from flux2_train.flavours import FLAVOURS
from flux2_train.planning.cards import layouts, ranges, seconds, split, works
from flux2_train.planning.estimate import estimate
from flux2_train.planning.layout import BLOCKS, Layout, spread
from flux2_train.planning.planner import FREE, Pins, choose, lora_sites, needed
from flux2_train.planning.weights import of_flavour
from flux2_train.planning.work import Machine, Passes, Work
from flux2_train.settings.memory import MemorySettings
from flux2_train.terminal.main import main

MACHINE = Machine(24e9)


def work_of(flavour="dev", cards=(), **more):
    weights = of_flavour(FLAVOURS[flavour], "fp8 (scaled)")
    return Work(weights, lora_sites(weights, list(weights.linears), 16), 4096, cards=cards, edges=1000, **more)


@given(
    st.lists(st.integers(1, 100), min_size=4, max_size=60), st.integers(0, 200),
    st.lists(st.floats(1, 100), min_size=1, max_size=4),
)  # fmt: skip
@pytest.mark.long
def test_every_block_lies_on_one_card_and_every_card_has_one(sizes, outside, free):
    counts = split(sizes, outside, free)
    assert len(counts) == len(free) and sum(counts) == len(sizes) and all(counts)
    assert [number for own in ranges(counts) for number in own] == list(range(len(sizes)))


def test_cards_are_filled_by_their_free_memory():
    assert split([1] * 30, 0, [1, 1, 1]) == (10, 10, 10)
    assert split([1] * 30, 0, [4, 1, 1]) == (20, 5, 5)
    assert split([1] * 30, 10, [1, 1]) == (10, 20)  # what is outside of blocks counts on the first
    assert split([1] * 30, 1000, [1, 1]) == (1, 29)


def test_the_cards_take_together_what_one_takes():
    layout = Layout(streamed=spread(20, 56))
    one, cards = estimate(work_of(), layout, MACHINE), estimate(work_of(cards=(20, 20, 16)), layout, MACHINE)
    each = [cards, *cards.others]
    assert len(each) == 3
    for part in ("adapters", "optimizer"):
        assert sum(estimate.parts[part] for estimate in each) == one.parts[part]
    assert sum(estimate.parts["weights"] for estimate in each) == one.parts["weights"]
    assert (
        cards.compute == pytest.approx(one.compute) and cards.host["streamed weights"] == one.host["streamed weights"]
    )
    assert cards.host["other cards"] == sum(estimate.parts["weights"] for estimate in cards.others)
    assert cards.peak < one.peak and all(estimate.peak < one.peak for estimate in cards.others)


def test_each_card_has_its_own_blocks_and_the_first_what_is_outside():
    work = work_of("klein-4b", (3, 12, 10), routes=((2, 22, 0.5),), routed=1.0)
    first, second, third = works(work)
    blocks = work.weights.block_bytes()
    assert [part.weights.block_bytes() for part in (first, second, third)] == [blocks[:3], blocks[3:15], blocks[15:]]
    assert (second.weights.double, second.weights.single) == (2, 10) and third.weights.double == 0
    assert [name for name in second.weights.linears if "_blocks" not in name] == []
    assert [name for name in third.weights.linears if "_blocks" not in name] == [
        "final_layer.linear",
        "final_layer.adaLN_modulation.1",
    ]
    assert first.weights.total + second.weights.total + third.weights.total == work.weights.total
    assert [part.image_at(1, True) for part in (first, second, third)] == [4096, 2048, 2048]
    assert third.image_at(8, True) == 4096  # block 23
    assert [own.streamed for own in layouts(work, Layout(streamed=(2, 3, 14, 24)))] == [(2,), (0, 11), (9,)]


def test_a_plan_fits_if_it_fits_every_card():
    work = work_of(cards=(22, 34))
    assert not choose(work, Machine(24e9, others=(24e9,))).layout.streamed
    assert choose(work, Machine(24e9, others=(12e9,))).layout.streamed
    with pytest.raises(UserError, match=r"On 2 cards this run needs \S+ \+ \S+ GB .* 24.0 \+ 3.0 GB are free"):
        choose(work, Machine(24e9, others=(3e9,)), Pins(streamed=0))


def at_once(work, machine, pins=FREE):
    return choose(work, machine, pins).layout.in_flight


def test_passes_are_in_flight_where_a_step_has_several_and_they_fit():
    machine, three = Machine(24e9, others=(24e9,)), Machine(24e9, others=(24e9, 24e9))
    several = work_of(cards=(22, 34), accumulate=4)
    one_by_one = choose(replace(several, overlaps=False), machine)
    assert one_by_one.layout.in_flight == 1
    assert choose(several, machine).layout == replace(one_by_one.layout, in_flight=2)
    assert at_once(work_of(cards=(22, 34)), machine) == 1  # a step is one pass
    assert at_once(work_of(cards=(22, 34), passes=Passes(trained=4 / 3)), machine) == 2
    assert at_once(work_of(cards=(22, 34), batch=4), machine, Pins(micro_batch=1)) == 2
    assert at_once(work_of(accumulate=4), MACHINE) == 1
    assert at_once(work_of(cards=(12, 22, 22), accumulate=2), three) == 2
    assert at_once(work_of(cards=(12, 22, 22), accumulate=9), three) == 3
    tight, pins = replace(machine, vram=needed(one_by_one.estimate) + 1e8), Pins(BLOCKS, 1, False, 0, micro_batch=1)
    assert at_once(several, machine, pins) == 2 and at_once(several, tight, pins) == 1
    assert at_once(several, tight) == 2  # something else is streamed or recomputed for it, which is faster


def test_each_card_keeps_the_activations_of_the_passes_that_come_to_it():
    work, layout = work_of(cards=(16, 20, 20), accumulate=4), Layout()
    alone, together = (estimate(work, replace(layout, in_flight=n), Machine(24e9)) for n in (1, 3))
    kept = [b.peak - a.peak for a, b in zip((alone, *alone.others), (together, *together.others), strict=True)]
    inputs = 2 * (4096 + 512) * 6144  # bytes of what a recomputed block keeps
    assert kept[0] == pytest.approx(2 * 16 * inputs, rel=0.2) and kept[1] == pytest.approx(20 * inputs, rel=0.2)
    assert kept[2] == 0
    away = estimate(work, replace(layout, offload_activations=True, in_flight=3), Machine(24e9)).host
    assert away["offloaded activations"] == (3 * 16 + 2 * 20 + 20) * inputs


def test_the_seconds_of_passes_in_flight():
    assert seconds([3.0, 2.0, 1.0], passes=4, in_flight=1) == 6
    assert seconds([2.0, 2.0, 2.0], passes=4, in_flight=3) == 2 * (4 + 3 - 1) / 4
    assert seconds([3.0, 2.0, 1.0], passes=4, in_flight=3) == 3 + 3 / 4
    assert seconds([2.0, 2.0, 2.0, 2.0], passes=4, in_flight=2) == 2 + 3 * 1  # a way of 2, half of it between two ends
    assert seconds([2.0, 2.0], passes=1, in_flight=1) == seconds([2.0, 2.0], passes=1.0, in_flight=2) == 4
    work, machine = work_of(cards=(16, 20, 20), accumulate=4, passes=Passes(trained=2, plain=1)), Machine(24e9)
    each = [estimate(part, Layout(), machine).compute for part in works(work)]
    found = estimate(work, Layout(in_flight=3), machine)
    assert found.seconds == pytest.approx(max(each) + (sum(each) - max(each)) / 8)


def test_the_terminal_says_what_lies_where(capsys):
    assert main(["plan", "--flavour", "dev", "--vram", "24", "--cards", "2"]) == 0
    text = capsys.readouterr().out
    assert "card 1 of 2: 22 blocks" in text and "card 2 of 2: 34 blocks; weights" in text
    assert "one card works at a time" in text
    assert main(["plan", "--flavour", "dev", "--vram", "24", "--cards", "2", "--accumulate", "4"]) == 0
    several = capsys.readouterr().out
    assert "2 passes in flight: while a card computes for one of them" in several and "one card works" not in several
    took = [float(re.search(r"time +(\S+) s per step", said).group(1)) for said in (text, several)]
    assert took[1] < 0.75 * 4 * took[0]
    for words, said in ((["--cards", "0"], "must be 1 to 56"), (["--cards", "2", "--shared", "2"], "give one of them")):
        assert main(["plan", "--flavour", "dev", "--vram", "24", *words]) != 0
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("cards", ["1", "2", "auto", "0,1", "2,0,5"])
def test_cards_that_can_be_meant(cards):
    assert MemorySettings(cards=cards).cards == cards


@pytest.mark.parametrize("cards", ["", "0", "two", "-1", "1,", "0, 1", "1.5", "٢"])
def test_cards_that_mean_nothing(cards):
    with pytest.raises(UserError, match="it must be 'auto', how many cards"):
        MemorySettings(cards=cards)


def test_cards_that_say_two_things():
    with pytest.raises(UserError, match="names a card twice"):
        MemorySettings(cards="1,0,01")
    with pytest.raises(UserError, match="turn share_base off"):
        MemorySettings(cards="auto", share_base=True)
