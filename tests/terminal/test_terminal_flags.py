"""A flag that is a setting has the choices, the default, the limits and the help of its field, and no others."""

import argparse

import pytest

from flux2_train.settings import base
from flux2_train.settings.dataset_folder import DatasetSettings
from flux2_train.settings.model import ModelSettings
from flux2_train.settings.optimizer import OptimizerSettings
from flux2_train.settings.previews import PreviewSettings
from flux2_train.settings.saving import SaveSettings
from flux2_train.settings.training import TrainingSettings
from flux2_train.terminal.dataset_check import _of_folder
from flux2_train.terminal.main import main, parser
from flux2_train.terminal.options import files_of

LINES = {
    "sample": ("sample", "a prompt"), "dataset check": ("dataset", "check", "folder"), "plan": ("plan",),
    "convert": ("convert", "lora", "output"),
}  # fmt: skip
SETTINGS = {
    "sample": [(ModelSettings, base.names(ModelSettings)),
               (PreviewSettings, ["negative", "steps", "guidance", "sampler"])],
    "dataset check": [(DatasetSettings, ["resolution", "captions", "prompt", "trigger", "references"]),
                      (TrainingSettings, ["batch"])],
    "plan": [(DatasetSettings, ["resolution"]), (TrainingSettings, ["rank", "batch", "accumulate", "targets"]),
             (OptimizerSettings, ["optimizer"])],
    "convert": [(SaveSettings, ["format", "precision", "plain_rank"])],
}  # fmt: skip
FLAGS = [(command, kind, name) for command, kinds in SETTINGS.items() for kind, names in kinds for name in names]
# Flags that are no settings: they say what a command reads and writes, or are those of FLUX.2 Sampler and of a card.
OTHERS = {
    "sample": {"output", "size", "seed", "batch", "reference", "keep_reference_size", "lora"},
    "dataset check": {"sheet"},
    "plan": {"flavour", "transformer", "vram", "precision", "ram", "bus", "tflops", "here", "shared", "cards"},
    "convert": {"base", "allow_unmatched"},
}


def command_parser(command: str) -> argparse.ArgumentParser:
    chosen = parser()
    for word in command.split():
        (commands,) = (action for action in chosen._actions if isinstance(action, argparse._SubParsersAction))
        chosen = commands.choices[word]
    return chosen


def flags(command: str) -> dict[str, argparse.Action]:
    actions = command_parser(command)._actions
    return {
        action.dest: action for action in actions if action.option_strings and action.dest not in ("help", "comfyui")
    }


def flag_of(name: str) -> str:
    return f"--{name.replace('_', '-')}"


@pytest.mark.parametrize("command", LINES)
def test_every_flag_is_a_setting_or_known_as_none(command):
    settings = {name for _, names in SETTINGS[command] for name in names}
    assert set(flags(command)) == settings | OTHERS[command]


@pytest.mark.parametrize("command, kind, name", FLAGS)
def test_a_flag_has_the_default_the_choices_and_the_help_of_its_setting(command, kind, name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "2000")  # no help text is broken into lines
    flag, field = flags(command)[name], base.info(kind, name)
    assert flag.option_strings == [flag_of(name)]
    assert getattr(parser().parse_args(LINES[command]), name) == field.default
    assert tuple(flag.choices or ()) == base.choices(kind, name)
    assert field.description in command_parser(command).format_help()


@pytest.mark.parametrize("command, kind, name", [flag for flag in FLAGS if base.choices(*flag[1:])])
def test_a_flag_takes_every_choice_and_nothing_else(command, kind, name, capsys):
    for choice in base.choices(kind, name):
        assert getattr(parser().parse_args([*LINES[command], flag_of(name), choice]), name) == choice
    assert main([*LINES[command], flag_of(name), f"{choice}x"]) == 2
    assert f"argument {flag_of(name)}: invalid choice: '{choice}x'" in capsys.readouterr().err


@pytest.mark.parametrize("command, kind, name", [flag for flag in FLAGS if base.limits(*flag[1:])[0] is not None])
def test_a_flag_has_the_limits_of_its_setting(command, kind, name, capsys):
    least, most = base.limits(kind, name)
    for value in (least, most):
        taken = getattr(parser().parse_args([*LINES[command], f"{flag_of(name)}={value}"]), name)
        assert taken == value and type(taken) is base.info(kind, name).annotation
    for value in (least - 1, most + 1, "many", "nan"):
        assert main([*LINES[command], f"{flag_of(name)}={value}"]) == 2
        assert f"from {least:g} to {most:g}" in capsys.readouterr().err


def test_a_half_is_no_whole_number(capsys):
    assert main(["plan", "--rank", "1.5"]) == 2
    assert "argument --rank: '1.5' is not a whole number from 1 to 1024" in capsys.readouterr().err


def test_flags_that_are_left_out_are_the_settings_defaults():
    assert files_of(parser().parse_args(LINES["sample"])) == ModelSettings()


@pytest.mark.parametrize("words", [["a", "b"], ["a;b"], ["a; b"]])
def test_folders_of_references_are_written_apart_or_as_in_the_node(words, tmp_path, monkeypatch):
    arguments = parser().parse_args(["dataset", "check", str(tmp_path), "--references", *words])
    read = []
    monkeypatch.setattr("flux2_train.data.folder.read_folder", lambda request, report: read.append(request))
    _of_folder(arguments, None)
    assert [str(folder) for folder in read[0].references] == ["a", "b"]
