"""The trigger words that a LoRA's header names."""

import json

import pytest

from flux2_train.adapters.header import Tensors, trigger_words


@pytest.mark.parametrize("header, words", [
    ({"modelspec.trigger_phrase": "zbot toy"}, "zbot toy"),
    ({"modelspec.trigger_phrase": ""}, ""),
    ({"ss_tag_frequency": json.dumps({"1_zbot": {"1_zbot": 1}})}, "zbot"),  # as AI Toolkit writes it
    ({"ss_tag_frequency": json.dumps({"10_zbot": {"a toy": 4, "outside": 2}})}, ""),  # kohya's count of captions
    ({"ss_tag_frequency": json.dumps({"1_a": {"1_a": 1}, "1_b": {"1_b": 1}})}, ""),
    ({"ss_tag_frequency": "{"}, ""), ({"ss_tag_frequency": "[[3]]"}, ""), ({"ss_tag_frequency": "[" * 10_000}, ""),
    ({"modelspec.trigger_phrase": "one\ntwo\x1b[31m"}, "one two\\x1b[31m"),
    ({"modelspec.trigger_phrase": "x" * 5000}, "x" * 59 + "..." + "x" * 58),
    ({}, ""),
])  # fmt: skip
def test_trigger_words_of_a_header(header, words):
    assert trigger_words(Tensors({}, header)) == words


def test_tensors_without_a_header_name_none():
    assert trigger_words({}) == ""
