"""Regular expressions out of files: what is read means what Python means by it, and nothing takes long."""

import json
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux2_train.adapters import expressions
from flux2_train.adapters.expressions import Expression, Patterns, Unreadable
from flux2_train.adapters.peft_config import Scales
from flux2_train.errors import UserError

NAMES = [
    "transformer_blocks.0.attn.to_q",
    "transformer_blocks.10.attn.to_add_out",
    "single_transformer_blocks.3.attn.to_out",
    "transformer_blocks.3.attn.to_out.0",
    "proj_out",
    "",
]


def pefts(source, name):
    """The rule of peft, by Python's own matching."""
    return re.match(rf"(.*\.)?({source})$", name) is not None


@pytest.mark.parametrize(
    "source",
    [
        r"to_q", r"attn\.to_q", r"transformer_blocks\.\d+\.attn\.to_q", r"(to_q|to_add_out)", r".*to_out",
        r"^transformer_blocks\.0\.attn\.to_q$", r"^transformer_blocks\.[0-9]", r"blocks.0.*", r"", r"()|x", r".*",
        r"(?:single_)?transformer_blocks\.\d+\.attn\.to_out(\.0)?", r"a|b|proj_out", r"(attn|ff)\..*",
        r"transformer_blocks.0.attn.to_q",
        r"attn\.(to_(q|k|v)|add_(q|k|v)_proj)", r"\d*", r"(\d|\.)+attn.*", r"to_out$", r"(a*)*b", r"(a+)+b",
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", NAMES)
def test_what_is_read_means_what_python_means(source, name):
    if "[" in source:
        with pytest.raises(Unreadable, match=re.escape(repr(source))):
            Expression(source)
        return
    assert Expression(source).ends(name) == pefts(source, name)


PIECES = st.sampled_from(["a", "b", r"\.", ".", r"\d", "1", "a*", ".*", r"\d+", "b?", "(", ")", "|", "(?:", ")*", ")+"])


@given(st.lists(PIECES, max_size=8).map("".join), st.text("ab.1", max_size=8))
def test_any_expression_that_is_read_means_what_python_means(source, name):
    try:
        expression = Expression(source)
    except Unreadable:
        return
    assert expression.ends(name) == pefts(source, name)


@pytest.mark.parametrize(
    "source",
    ["[ab]", "a{2}", r"\w+", "a**", "a*?", "(?=a)", "(?i)a", "(a", "a)", "a$b", "a^b", "^a|b", "a|b$c", "*", "\\",
     "(" * 50, r"(a)\1", "a" * 3000],
)  # fmt: skip
def test_anything_else_is_refused_by_name(source):
    with pytest.raises(Unreadable, match=re.escape(repr(source[:40])[1:-1])):
        Expression(source)


def test_the_first_that_matches_counts_whether_name_or_expression():
    patterns = Patterns({"to_k": 1, r"attn\..*": 2, r"transformer_blocks\.0\.attn\.to_q": 3, "ff": 4, "^proj_out$": 5})
    assert patterns.of("transformer_blocks.0.attn.to_k", 9) == 1
    assert patterns.of("transformer_blocks.0.attn.to_q", 9) == 2
    assert patterns.of("transformer_blocks.0.ff", 9) == 4
    assert patterns.of("transformer_blocks.0.off", 9) == 9
    assert patterns.of("proj_out", 9) == 5
    assert patterns.of("blocks.proj_out", 9) == 9


@pytest.mark.parametrize("source", ["(a+)+b", "(a|a)*b", "(.*.*.*.*.*)*b", "a?" * 900 + "b", "((a*)*)*" * 5])
def test_expressions_that_take_others_for_ever_take_no_time(source):
    started = time.perf_counter()
    assert not Expression(source).ends("a" * 900 + "c")
    assert time.perf_counter() - started < 20


@pytest.mark.long
@pytest.mark.parametrize("count", [500, 20_000])
def test_a_file_with_too_many_expressions_is_refused_soon(count):
    many = {f"(a*)*b{n}": n for n in range(count)}
    scales, started = Scales({"r": 4, "lora_alpha": 4, "rank_pattern": many}), time.perf_counter()
    with pytest.raises(UserError, match=rf"{count} expressions such as '\(a\*\)\*b0'"):
        for n in range(20_000):
            scales.of("a" * 100 + str(n))
    assert time.perf_counter() - started < 30


def test_many_names_are_looked_up_at_once():
    names = {f"transformer_blocks.{n}.attn.to_q": n for n in range(20_000)}
    patterns, started = Patterns(names), time.perf_counter()
    assert [patterns.of(name, -1) for name in names] == list(names.values())
    assert time.perf_counter() - started < 5 and patterns.work == 0


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"r": "4"}, "r of this .* is '4', which is no number"),
        ({"r": 4, "lora_alpha": [4]}, "lora_alpha of this .* no number"),
        ({"r": 4, "rank_pattern": ["to_q"]}, "rank_pattern of this .* no dictionary"),
        ({"r": 4, "alpha_pattern": {"to_q": None, "to_k": True}}, "to_k of this .* 'True'"),
        (json.loads('{"r": NaN}'), "r of this .* 'nan'"),
    ],
)
def test_numbers_that_are_none_are_refused(config, words):
    with pytest.raises(UserError, match=words):
        Scales(config)


def test_the_bound_is_not_reached_by_what_people_have():
    scales = Scales({"r": 16, "lora_alpha": 16, "rank_pattern": {r"(single_)?transformer_blocks\.\d+\.attn\..*": 8}})
    for n in range(64):
        for last in ("to_q", "to_k", "to_v", "to_out.0"):
            assert scales.of(f"transformer_blocks.{n}.attn.{last}") == 2
    assert scales.ranks.work < expressions.MOST_WORK / 10
