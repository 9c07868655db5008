"""Names, numbers and JSON that no honest person writes are refused with a sentence, before anything is done."""

import json
import time

import pytest

from flux2_train import names
from flux2_train.bounded import DEEPEST, from_json
from flux2_train.errors import LONGEST, UserError
from flux2_train.settings import job
from flux2_train.settings.prompts import from_file
from flux2_train.settings.text import MOST, numbers, rates
from flux2_train.settings.timesteps import TimestepSettings
from flux2_train.settings.training import TrainingSettings
from flux2_train.train import optimizers

GOOD = ["flux2_lora", "zbot v2.1", "größe", "人物", "می\u200cخواهم", ".hidden", "console", "com10", "a" * 200]


@pytest.mark.parametrize("name", GOOD)
def test_names_that_every_system_takes_are_taken(name):
    assert names.problem(name) == "" and TrainingSettings(name=name).name == name


@pytest.mark.parametrize("name, why", [
    ("", "no letters"), ("..", "no letters"), ("a/b", "it has /"), ("a\\b", "it has"), ("<b>x</b>", "it has / < >"),
    ("CON", "device"), ("nul", "device"), ("Nul.txt", "device"), ("COM1", "device"), ("lpt¹.x", "device"),
    ("CONIN$", "device"), ("foo.", "ends with a dot"), ("foo ", "a dot or a space"), ("a\nb", "control characters"),
    ("a\u202egpj.exe", "invisible"), ("a\u2028b", "invisible"), ("a\x7f", "control"), ("\ud800", "invisible"),
    ("a" * 201, "has 201 bytes, at most 200"), ("人" * 67, "has 201 bytes"), ("a\u200bb", "invisible"),
])  # fmt: skip
def test_names_that_some_system_does_not_take_are_refused(name, why):
    assert why in names.problem(name)
    with pytest.raises(UserError, match="cannot be a file name, because") as caught:
        TrainingSettings(name=name)
    assert str(caught.value).isprintable()


def test_a_foreign_name_is_shown_in_one_line_and_short():
    assert names.shown("a\nb\x1b[31m\u202e.png") == r"a\nb\x1b[31m\u202e.png"
    long = names.shown("x" * 5000 + ".png")
    assert len(long) == names.LONGEST and long.endswith("xx.png") and "..." in long
    assert (
        str(UserError("a\x1b]0;x\x07\nb")) == "a\\x1b]0;x\\x07\nb" and len(str(UserError("y" * 3_000_000))) <= LONGEST
    )


@pytest.mark.parametrize("text, why", [
    ("[" * 100_000, "levels deep"), ("[" * (DEEPEST + 2) + "]" * (DEEPEST + 2), f"more than {DEEPEST} levels"),
    ("9" * 5000, "too many digits"), ("9" * 4000, "too many digits"), ("NaN", "no finite number"),
    ("[1e999]", "no finite number"), ('{"a": -Infinity}', "no finite number"), ('{"secret": 1', "line 1 column"),
])  # fmt: skip
def test_one_reader_of_json_is_bounded(tmp_path, text, why):
    with pytest.raises(ValueError, match=why) as caught:
        from_json(text)
    assert "secret" not in str(caught.value)
    (tmp_path / "library.json").write_text(text)
    with pytest.raises(UserError, match=r"library.json cannot be read: .*" + why):
        from_file(tmp_path / "library.json")


VALUES = ["NaN", "Infinity", "-1", "1000000000000", "9" * 4000, "9" * 5000, "[" * 50 + "]" * 50, "[" * 100_000,
          '{"a": {"b": 1}}', '"1"', "null"]  # fmt: skip


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("setting", ["steps", "learning_rate", "rank", "seed"])
def test_a_job_takes_numbers_within_the_limits_of_its_settings_alone(tmp_path, setting, value):
    path = tmp_path / "job.json"
    path.write_text(f'{{"dataset": {{}}, "training": {{"{setting}": {value}}}}}')
    if setting == "seed" and value == "1000000000000":
        assert job.load(path).training.seed == 10**12
        return
    with pytest.raises(UserError, match="job.json") as caught:
        job.load(path)
    assert len(str(caught.value)) < 400


def test_lists_are_bounded():
    with pytest.raises(UserError, match=f"values has 1001 entries; at most {MOST}"):
        TimestepSettings("curve", values=",".join(["1"] * (MOST + 1)))
    with pytest.raises(UserError, match="values has 100000 entries"):
        TimestepSettings("curve", values=(1.0,) * 100_000)
    with pytest.raises(UserError) as caught:
        numbers("x" * 10**6, "values")
    assert len(str(caught.value)) < 300


def test_a_pattern_of_a_block_rate_costs_no_time_and_is_no_regular_expression():
    """One name of 28 letters took 3.3 seconds with this one, in which the whole server stood still."""
    layers = {object(): "single_blocks.0.linear1", object(): "a" * 28}
    began = time.perf_counter()
    for pattern in ("(a+)+$", "*a" * 60 + "b"):
        with pytest.raises(UserError, match="fits no layer"):
            optimizers.by_block([], layers, ((pattern, 0.5),))
    assert time.perf_counter() - began < 0.5
    with pytest.raises(UserError, match="no regular expressions: write names with"):
        rates("(a+)+$=0.5")


@pytest.mark.parametrize("old, glob", [
    ("single_blocks", "single_blocks*"), ("img_mlp", "*img_mlp*"), (r"^double_blocks\.1\.", "double_blocks.1.*"),
    ("linear1$", "*linear1"), (r"double_blocks\.\d+\.img_mlp", "double_blocks.*.img_mlp*"),
])  # fmt: skip
def test_an_old_block_rate_is_refused_with_the_glob_to_write(old, glob):
    layers = {n: n for n in ("double_blocks.1.img_mlp.0", "single_blocks.0.linear1")}
    with pytest.raises(UserError, match="fits no layer as a whole name: write") as caught:
        optimizers.by_block([], layers, ((old, 0.5),))
    assert repr(glob) in str(caught.value)
    groups = [{"params": [*layers], "lr": 1.0}]
    assert {group["lr"] for group in optimizers.by_block(groups, layers, ((glob, 0.5),))} == {0.5, 1.0}


def test_a_job_file_is_bounded(tmp_path):
    (tmp_path / "job.json").write_text(json.dumps({"unknown": ["x" * (job.MAX_BYTES + 1)]}))
    with pytest.raises(UserError, match=f"job.json is .* bytes long; at most {job.MAX_BYTES} are read as a job"):
        job.load(tmp_path / "job.json")
