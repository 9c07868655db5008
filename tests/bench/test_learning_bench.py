"""The bench of what is learned: its settings are real ones, and its shortest form measures, goes on and prints."""

import json
import math

import pytest
import torch

from bench.learning.__main__ import ALL, answered, main, parser
from bench.learning.cell import OWN, Protocol
from bench.learning.questions import QUESTIONS, STANDARD
from bench.learning.table import COLUMNS, interval, plot, table
from bench.nano.learn import job_of, learn

CELL = {"concept": 80.0, "off": 0.01, "few": 60.0, "few_off": 0.02, "leak": 20.0, "kept": 90.0, "far": 0.002,
        "loss": 0.5, "selectivity": None, "before": 0.7, "steps": 9, "seconds": 1.0}  # fmt: skip
SHORTEST = ["--seeds", "1", "--prompts", "1", "--threads", "1"]


@pytest.mark.parametrize("question", ALL)
def test_every_setting_is_one_that_a_job_has_and_changes_it(question, tmp_path):
    jobs = []
    for changes in ALL[question].settings.values():
        own = tuple(each for each in changes if each.split("=")[0] in OWN)
        jobs.append((own, job_of("style", 0, tmp_path, [each for each in changes if each not in own])))
    assert all(one != other for number, one in enumerate(jobs) for other in jobs[:number])
    assert set(STANDARD) <= set(QUESTIONS)


def test_intervals_are_students():
    """1, 2, 3: mean 2, deviation 1, t 4.303 for two degrees of freedom."""
    assert interval([1.0, 2.0, 3.0]) == (2.0, pytest.approx(4.303 / math.sqrt(3)))
    assert interval([7.0]) == (7.0, 0.0)
    many = [float(n % 2) for n in range(40)]
    deviation = torch.tensor(many).std().item()
    assert interval(many)[1] == pytest.approx(2.0227 * deviation / math.sqrt(40), rel=0.01)  # t for 39 degrees


def test_a_table_has_the_base_and_every_setting(tmp_path):
    cells = [{"setting": name, "seed": seed, **CELL, "leak": 20.0 + 2 * seed} for seed in (0, 1) for name in "ab"]
    result = {"question": "rate", "protocol": {"concept": "style"}, "base": {"concept": 1.0}, "cells": cells}
    lines = table(result).splitlines()
    assert [line.split(" | ")[0] for line in lines] == ["| rate", "| ---", "| base", "| a", "| b"]
    assert "| 80 | 10.0 | 60 | 20.0 | 21 ± 13 | 90 | 2.00 | 0.5000 |  | 9 | 1 |" in lines[3] and len(COLUMNS) == 11
    plot(result, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.long
def test_the_shortest_form_measures_both_trainers_and_goes_on_where_it_was_left(tmp_path, capsys):
    short = ["trainer", "--only", "the demo", "TrainLoraNode, 2e-3", "--steps", "1", *SHORTEST]
    main([*short, "--out", str(tmp_path)])
    path = tmp_path / "learning_trainer.json"
    first = json.loads(path.read_text())
    ours, node = first["cells"]
    assert (ours["setting"], node["setting"]) == ("the demo", "TrainLoraNode, 2e-3") and ours["selectivity"] > 0
    assert ours["before"] != ours["loss"] > 0 and ours["seconds"] > 0 < node["seconds"] and node["loss"] is None
    assert 0 < ours["far"] < first["base"]["far"] + 1 and first["base"]["far"] == 0
    assert 0 < ours["off"] != ours["few_off"] > 0 and ours["few"] >= 0
    assert "| the demo | 1 |" in capsys.readouterr().out and path.with_suffix(".png").is_file()
    again = answered("trainer", Protocol("character", 1, 1), 1, path, ["the demo"])
    assert again == first
    with pytest.raises(SystemExit, match="name another folder"):
        answered("trainer", Protocol("character", 2, 1), 1, path, [])
    rate = tmp_path / "learning_rate.json"
    (taken,) = answered("rate", Protocol("character", 1, 1), 1, rate, ["2e-3"])["cells"]
    assert {**taken, "setting": "the demo"} == ours  # the same run, which is not made twice
    rate.write_text(json.dumps(json.loads(rate.read_text()) | {"machine": {"cores": 0}}))
    new, old = answered("rate", Protocol("character", 1, 1), 1, rate, ["1e-3"])["cells"]
    assert old == taken and new["machine"] == first["machine"]  # which is not the file's


@pytest.mark.slow
def test_two_processes_measure_the_cells_of_a_question(tmp_path):
    names = ["the demo", "TrainLoraNode, 2e-3"]
    short = ["trainer", "--only", *names, "--steps", "1", *SHORTEST, "--processes", "2", "--out", str(tmp_path)]
    main(short)
    cells = json.loads((tmp_path / "learning_trainer.json").read_text())["cells"]
    assert [cell["setting"] for cell in cells] == names and all(cell["seconds"] > 0 for cell in cells)


def test_the_standard_set_is_what_it_does_without_a_question():
    assert parser().parse_args([]).questions == [] and parser().parse_args(["rate"]).questions == ["rate"]


@pytest.mark.slow
def test_nanos_own_command_teaches_through_the_bench(capsys):
    learn(["character"], 1, 1, ["steps=1"])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("character seed 0: base ")]
    assert "without trigger" in line and line.endswith("s of training")
