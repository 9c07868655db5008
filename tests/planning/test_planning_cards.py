"""One model over several cards: every byte lies on one of them, by their free memory, and the seconds are of all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux2_train.errors import UserError
from flux2_train.flavours import FLAVOURS
from flux2_train.planning.cards import layouts, ranges, split, works
from flux2_train.planning.estimate import estimate
from flux2_train.planning.layout import Layout, spread
from flux2_train.planning.planner import Pins, choose, lora_sites
from flux2_train.planning.weights import of_flavour
from flux2_train.planning.work import Machine, Work
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


def test_the_terminal_says_what_lies_where(capsys):
    assert main(["plan", "--flavour", "dev", "--vram", "24", "--cards", "2"]) == 0
    text = capsys.readouterr().out
    assert "card 1 of 2: 22 blocks" in text and "card 2 of 2: 34 blocks; weights" in text
    assert "one card works at a time" in text
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
