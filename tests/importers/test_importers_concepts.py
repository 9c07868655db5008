"""What other trainers say about concepts and their captions: tags that are dropped."""

from test_importers_values import ai_toolkit, onetrainer


def test_ai_toolkits_dropped_tokens_are_variations(tmp_path):
    made = ai_toolkit(tmp_path, data={"token_dropout_rate": 0.2}).dataset[0].caption_options
    assert (made.tag_dropout, made.shuffle, made.keep_order) == (0.2, 10, True)
    made = ai_toolkit(tmp_path, data={"token_dropout_rate": 0.2, "shuffle_tokens": True}).dataset[0].caption_options
    assert (made.tag_dropout, made.keep_order) == (0.2, False)


def test_onetrainers_dropped_tags_of_one_probability_are_here(tmp_path):
    text = {"tag_dropout_enable": True, "tag_dropout_mode": "RANDOM", "tag_dropout_probability": 0.3}
    for mode, dropped in (("RANDOM", 0.3), ("FULL", 0.0)):
        concepts = [{"path": "a", "text": {**text, "tag_dropout_mode": mode}}]
        made = onetrainer(tmp_path, concepts=concepts).dataset[0].caption_options
        assert made.tag_dropout == dropped
