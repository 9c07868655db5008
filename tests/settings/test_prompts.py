"""Prompt files: one per line, or SimpleTuner's prompt library."""

import json

import pytest

from flux2_train.errors import UserError
from flux2_train.host.loading import files
from flux2_train.settings import base, job
from flux2_train.settings.job import Job
from flux2_train.settings.model import ModelSettings
from flux2_train.settings.previews import PreviewSettings, Prompt, ValidationLossSettings, from_lines
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
