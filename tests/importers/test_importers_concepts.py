"""What other trainers say about concepts and their captions: tags that are dropped."""

from test_importers_values import ai_toolkit, job, onetrainer


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


def test_onetrainers_turned_and_recoloured_pictures(tmp_path):
    image = {"enable_random_rotate": True, "random_rotate_max_angle": 8.0, "enable_random_hue": True,
             "random_hue_max_strength": 0.2, "enable_random_contrast": True, "random_contrast_max_strength": 0.3,
             "random_brightness_max_strength": 0.9}  # fmt: skip
    plain = {"path": "/b", "text": {}, "image": {"enable_random_rotate": False}, "image_variations": 4}
    concepts = [{"path": "/a", "text": {}, "image": image, "image_variations": 4}, plain]
    varied, plain = (each.crop_options for each in onetrainer(tmp_path, concepts=concepts).dataset)
    assert (varied.rotation, varied.color_jitter, varied.variations) == (8, 0.3, 4)
    assert (plain.rotation, plain.color_jitter, plain.variations) == (0, 0, 1)


def test_previews_have_their_own_size_seed_and_steps(tmp_path):
    (tmp_path / "prompts.txt").write_text("a fox --w 520 --h 512 --d 7 --s 25 --g 4\nan owl\n")
    line = "python flux_2_train_network.py --model_version klein-base-9b --network_module networks.lora_flux_2 "
    fox, owl = job(tmp_path, f"{line} --sample_prompts prompts.txt", "train.sh", flavour="").previews.prompts
    assert (fox.width, fox.height, fox.seed, fox.steps) == (512, 512, 7, 25)
    assert (owl.text, owl.width, owl.seed) == ("an owl", None, None)
    sample = {"samples": [{"prompt": "a fox", "width": 768, "height": 520, "seed": 3, "sample_steps": 8}]}
    (fox,) = ai_toolkit(tmp_path, sample=sample).previews.prompts
    assert (fox.width, fox.height, fox.seed, fox.steps) == (768, 512, 3, 8)
