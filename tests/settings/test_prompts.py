"""Prompt files: one per line, or SimpleTuner's prompt library."""

import json

import pytest

from flux2_train.errors import UserError
from flux2_train.host.loading import files
from flux2_train.settings import base, job
from flux2_train.settings.job import Job
from flux2_train.settings.model import ModelSettings
from flux2_train.settings.previews import PreviewSettings, Prompt, ValidationLossSettings, from_line, from_lines
from flux2_train.settings.prompts import MOST_BYTES, from_file


def written(tmp_path, text, name="prompts.json"):
    path = tmp_path / name
    path.write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8-sig")
    return path


def test_a_text_has_a_prompt_per_line(tmp_path):
    path = written(tmp_path, "a zbot\n\n  zbot am Meer, größer  \n", "prompts.txt")
    assert from_file(path) == (Prompt("a zbot"), Prompt("zbot am Meer, größer"))
    assert from_lines("a\n \nb") == (Prompt("a"), Prompt("b"))


def test_simpletuners_library_gives_names_prompts_and_strengths(tmp_path):
    library = {"portrait": "a portrait of zbot", "weak": {"prompt": "zbot at sea", "adapter_strength": 0.5}}
    assert from_file(written(tmp_path, library)) == (
        Prompt("a portrait of zbot", "portrait"),
        Prompt("zbot at sea", "weak", 0.5),
    )


@pytest.mark.parametrize("text, words", [
    (["a"], "holds a list"), ({"a": 3}, "entry 1 has no text"), ({"a": {"text": "x"}}, "entry 1 has no text"),
    ({"a": {"prompt": "x", "bbox_entities": []}}, "entry 1 has keys that do nothing"), ({}, "holds no prompt"),
    ({"a": {"prompt": "x", "adapter_strength": "high"}}, "entry 1 has an adapter_strength that is no"),
    ({"a": " "}, "prompt is empty"), ("{", "cannot be read"),
    ({"a": {"prompt": "x", "adapter_strength": 99}}, "between -10 and 10"),
])  # fmt: skip
def test_what_is_wrong_in_a_library_is_said(tmp_path, text, words):
    with pytest.raises(UserError, match=words):
        from_file(written(tmp_path, text))


def test_files_are_bounded_and_found_where_they_may_lie(tmp_path, comfy_folders):
    with pytest.raises(UserError, match=f"at most {MOST_BYTES}"):
        from_file(written(tmp_path, "x" * (MOST_BYTES + 1), "long.txt"))
    with pytest.raises(UserError, match="no .txt and no .json"):
        from_file(written(tmp_path, "x", "prompts.pt"))
    with pytest.raises(UserError, match="There is no prompt file"):
        from_file(tmp_path / "none.txt")
    (tmp_path / "latin.txt").write_bytes(b"gr\xfcn")
    with pytest.raises(UserError, match="is not UTF-8"):
        from_file(tmp_path / "latin.txt")
    assert files.resolve_file("a.txt") == comfy_folders / "input" / "a.txt"
    assert files.resolve_file(str(tmp_path / "a.txt")) == tmp_path / "a.txt"
    for bad in ("../a.txt", " "):
        with pytest.raises(UserError, match="is no file name"):
            files.resolve_file(bad)


def test_a_job_holds_all_of_it(tmp_path):
    prompts = (Prompt("a"), Prompt("b", "beta", 0.5, (tmp_path / "b.png",)))
    asked = PreviewSettings(prompts, "bad", 512, 768, 50, False, 7, "walking", 8, 3.0, "heun", 0.8, False,
                            ModelSettings("klein-4b", variant="distilled"))  # fmt: skip
    whole = Job((), previews=asked, unknown=("no data",))
    path = tmp_path / "job.json"
    path.write_text(whole.to_json())
    assert job.load(path) == whole
    assert job.load(path, ["previews.every=9"]).previews.every == 9
    assert job.load(path, ["validation.every=9"]).previews.every == 9  # as earlier versions name it
    config = ValidationLossSettings(0.2, 3, 10, True, 20)
    assert base.read(ValidationLossSettings, base.plain(config)) == config


@pytest.mark.parametrize("change", [{"share": 1.0}, {"every": -1}, {"per_image_every": -1}], ids=str)
def test_held_out_settings_are_checked(change):
    with pytest.raises(UserError, match=next(iter(change))):
        ValidationLossSettings(**change)


@pytest.mark.parametrize("line, prompt", [
    ("a fox --w 512 --h 768 --d 7 --s 20", Prompt("a fox", width=512, height=768, seed=7, steps=20)),
    ("a fox --s 4  --d 0", Prompt("a fox", seed=0, steps=4)), ("a fox --d 1 stays", Prompt("a fox --d 1 stays")),
    ("--w 64", Prompt("--w 64")), ("a fox --x 3", Prompt("a fox --x 3")), ("a fox --w -3", Prompt("a fox --w -3")),
])  # fmt: skip
def test_numbers_behind_a_prompt_are_its_own(line, prompt):
    assert from_line(line) == prompt and from_line(prompt.line) == prompt
    assert from_lines(f"{line}\nb") == (prompt, Prompt("b"))


def test_a_prompts_own_numbers_come_before_those_of_all():
    config = PreviewSettings("a --w 512 --d 9\nb --h 2048", width=256, height=128, seed=3, seeds="walking")
    assert [config.size_of(prompt) for prompt in config.prompts] == [(512, 128), (256, 2048)]
    assert [config.seed_of(0), config.seed_of(1)] == [9, 4] and config.largest == (256, 2048)
    assert config.texts == ["a", "b", ""]


@pytest.mark.parametrize("line, words", [
    ("a --w 40", "width of a prompt is 40; it must be a multiple of 16"), ("a --h 9000", "it must be 16 to 8192"),
    ("a --s 0", "steps of a prompt is 0; it must be 1 to 200"), ("a --d 99999999999999999999", "seed of a prompt"),
])  # fmt: skip
def test_numbers_that_a_prompt_cannot_have_are_named_without_its_text(line, words):
    with pytest.raises(UserError, match=words) as error:
        from_line(line.replace("a ", "my secret "))
    assert "secret" not in str(error.value)
