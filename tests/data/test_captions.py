"""Captions in every form, and what the trigger makes of them."""

import json
from dataclasses import replace

import pytest
from pictures import captions_of, picture, read

from flux2_train.data.captions import variants, with_trigger
from flux2_train.errors import UserError
from flux2_train.settings.dataset_folder import CHOOSE, CaptionSettings


@pytest.mark.parametrize("caption, trigger, word, expected", [
    ("a [trigger] dog", "ohwx", None, "a ohwx dog"),
    ("a dog", "ohwx", None, "ohwx, a dog"),
    ("a dog", "", None, "a dog"),
    ("a [trigger] dog", "", None, "a dog"),
    ("ohwx runs", "ohwx", "dog", "dog runs"),
    ("a dog", "ohwx", "dog", "dog, a dog"),
    ("a photo of ohwx dog", "ohwx", "dog", "a photo of dog"),
    ("", "ohwx", None, "ohwx"),
    ("a woman", "man", None, "man, a woman"),
    ("a man and a woman", "man", "person", "a person and a woman"),
    ("a [trigger], c++ style", "c++", "code", "a code, code style"),
])  # fmt: skip
def test_trigger(caption, trigger, word, expected):
    assert with_trigger(caption, trigger, word) == expected


def test_the_trigger_is_put_in_front_only_if_wanted(tmp_path):
    picture(tmp_path / "a.png", caption="a dog")
    off = CaptionSettings(prepend_trigger=False)
    assert captions_of(tmp_path, trigger="ohwx") == ["ohwx, a dog"]
    assert captions_of(tmp_path, trigger="ohwx", caption_options=off) == ["a dog"]
    (tmp_path / "a.txt").write_text("[trigger] runs")
    assert captions_of(tmp_path, trigger="ohwx", caption_options=off) == ["ohwx runs"]


def test_every_source(tmp_path):
    for name in ("a_red-dog", "b", "c"):
        picture(tmp_path / f"{name}.png", caption=None)
    (tmp_path / "a_red-dog.txt").write_text("\ufefffrom txt\n", encoding="utf-8")
    (tmp_path / "b.caption").write_text("from caption")
    (tmp_path / "c.json").write_text(json.dumps({"caption": "from json", "other": 1}))
    assert captions_of(tmp_path) == ["from txt", "from caption", "from json"]
    assert captions_of(tmp_path, captions="file name") == ["a red dog", "b", "c"]
    assert captions_of(tmp_path, captions="one prompt", prompt=" a thing ") == ["a thing"] * 3
    (tmp_path / "b.caption").unlink()
    assert captions_of(tmp_path, prompt="default") == ["from txt", "default", "from json"]
    with pytest.raises(UserError, match=r"1 of 3 images have no caption file \(b.png\)"):
        read(tmp_path)
    with pytest.raises(UserError, match="3 of 3 images have no caption file"):
        read(tmp_path, captions="one prompt")
    (tmp_path / "c.txt").write_text("txt comes first")
    assert captions_of(tmp_path, prompt="default")[-1] == "txt comes first"


@pytest.mark.parametrize("content, words", [
    ("{", "c.json is not JSON"), ("[]", 'has no key "caption"'), ('{"caption": 3}', "neither a text nor a list"),
    ('{"caption": ["a", 3]}', "neither a text nor a list"), ("[" * 30000, "c.json is not JSON"),
    (" " * 70000, "c.json is 70000 bytes long"),
])  # fmt: skip
def test_bad_json_is_named(tmp_path, content, words):
    picture(tmp_path / "c.png", caption=None)
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(UserError, match=words):
        read(tmp_path)


def rows(folder, *lines):
    (folder / "data.jsonl").write_text(
        "\n".join(json.dumps(line) if isinstance(line, dict) else line for line in lines)
    )
    return folder / "data.jsonl"


def test_jsonl_names_images_captions_and_controls(tmp_path):
    for name in ("a.png", "sub/b.png", "c.png", "before/x.png", "before/y.png"):
        picture(tmp_path / name, colour=(len(name), 0, 0), caption=None)
    file = rows(
        tmp_path,
        {"image": "sub/b.png", "caption": "first", "control": "before/x.png"},
        {"image_path": "a.png", "text": ["second", "or this"], "control_path_1": "before/x.png",
        "control_path_0": "before/y.png"},
        "",
        {"file_name": "c.png"},
    )  # fmt: skip
    dataset = read(file, prompt="default", caption_options=CaptionSettings(several=CHOOSE))
    assert [i.captions for i in dataset.items] == [("first",), ("second", "or this"), ("default",)]
    assert [[v.path.name for v in i.references] for i in dataset.items] == [["x.png"], ["y.png", "x.png"], []]
    assert captions_of(tmp_path, captions="jsonl", prompt="default") == ["first", "second or this", "default"]
    (tmp_path / "more.jsonl").write_text("")
    with pytest.raises(UserError, match="holds 2 .jsonl files"):
        read(tmp_path, captions="jsonl")


@pytest.mark.parametrize("line, words", [
    ("{", r"line 1 is not JSON"), ("[]", "line 1 is no object"), ({"caption": "x"}, 'line 1 has no "image"'),
    ({"image": 3}, 'line 1 has no "image"'), ({"image": "../a.png"}, "lies outside"),
    ({"image": "/etc/x.png"}, "lies outside"),
    ({"image": "a.png", "control": "../b.png"}, "lies outside"), ({"image": "a.png", "caption": {}}, "neither a text"),
    ({"image": "a.png", "control": ["a.png"] * 11}, "line 1 has 11 references; at most 10"),
    ({"image": "gone.png", "caption": ""}, "names 1 file that is not there: gone.png"),
])  # fmt: skip
def test_bad_jsonl_is_named_with_its_line(tmp_path, line, words):
    picture(tmp_path / "a.png")
    with pytest.raises(UserError, match=words):
        read(rows(tmp_path, line), bad_files="refuse")


def test_several_captions_are_joined_or_kept_apart(tmp_path):
    picture(tmp_path / "a.png", caption="one\n\n two \n")
    assert read(tmp_path).items[0].captions == ("one two",)
    assert read(tmp_path, caption_options=CaptionSettings(several=CHOOSE)).items[0].captions == ("one", "two")
    (tmp_path / "a.txt").unlink()
    (tmp_path / "a.json").write_text('{"caption": ["one", "two"]}')
    assert read(tmp_path).items[0].captions == ("one two",)
    chosen = read(tmp_path, trigger="ohwx", class_word="dog", caption_options=CaptionSettings(several=CHOOSE)).items[0]
    assert chosen.captions == ("ohwx, one", "ohwx, two") and chosen.class_captions == ("dog, one", "dog, two")


def test_shuffling_keeps_the_first_parts_and_every_part():
    options = CaptionSettings(shuffle=10, keep_tokens=2)
    made = variants(["a, b, c, d, e, f"], options, "key")
    assert 5 < len(made) <= 10
    assert all(text.startswith("a, b, ") and sorted(text.split(", ")) == list("abcdef") for text in made)
    assert made == variants(["a, b, c, d, e, f"], options, "key")
    assert made != variants(["a, b, c, d, e, f"], options, "other image")
    assert made != variants(["a, b, c, d, e, f"], CaptionSettings(shuffle=10, keep_tokens=2, seed=1), "key")
    assert variants(["a; b; c"], CaptionSettings(shuffle=50, separator=";"), "k") != variants(["a; b; c"], options, "k")
    assert variants(["a, b"], CaptionSettings(), "key") == ("a, b",)


def test_tags_are_dropped_as_often_as_asked_and_the_first_ones_never():
    text = ", ".join(f"t{number}" for number in range(50))
    options = CaptionSettings(shuffle=100, keep_tokens=2, tag_dropout=0.3)
    made = [each.split(", ") for each in variants([text], options, "key")]
    assert len(made) == 100 and all(parts[:2] == ["t0", "t1"] for parts in made)
    shares = [sum(f"t{number}" in parts for parts in made) / 100 for number in range(2, 50)]
    assert sum(shares) / 48 == pytest.approx(0.7, abs=0.03) and min(shares) > 0.5 and max(shares) < 0.9
    ordered = variants([text], replace(options, keep_order=True), "key")
    assert all(parts == sorted(parts, key=lambda tag: int(tag[1:])) for parts in (e.split(", ") for e in ordered))
    assert len(ordered) == 100 and made != [each.split(", ") for each in ordered]
    assert variants([text], replace(options, tag_dropout=0.0), "key") == variants(
        [text], CaptionSettings(shuffle=100, keep_tokens=2), "key"
    )


def test_the_dropout_caption_is_encoded_with_its_class_form(tmp_path):
    picture(tmp_path / "a.png", caption="x")
    plain = read(tmp_path, trigger="ohwx", class_word="dog")
    dropped = read(tmp_path, trigger="ohwx", class_word="dog", caption_options=CaptionSettings(dropout=0.1))
    assert set(dropped.texts()) == set(plain.texts()) >= {""}
    assert dropped.sources[0].dropout_caption == ""
    own = CaptionSettings(dropout=0.1, dropout_caption="[trigger]")
    with_own = read(tmp_path, trigger="ohwx", class_word="dog", caption_options=own)
    assert set(with_own.texts()) == {*plain.texts(), "ohwx", "dog"}


@pytest.mark.parametrize("settings, words", [({"dropout": 1.5}, "dropout is 1.5; it must be at least 0 and at most 1"),
                                             ({"tag_dropout": 0.1}, "tag_dropout is on but shuffle is 0"),
                                             ({"shuffle": 2, "separator": ""}, "separator is empty")])  # fmt: skip
def test_bad_options_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        CaptionSettings(**settings)
