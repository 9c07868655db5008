"""The bench's questions that look at single steps, at the order of runs, and at diffusers with peft."""

import json
from types import SimpleNamespace

import pytest
import torch

from bench.learning import best, order, reach
from bench.learning.__main__ import main
from bench.learning.cell import Protocol, adapted, teach
from bench.nano import flow
from flux2_train.train.trainer import Trainer

SHORTEST = ["--seeds", "1", "--prompts", "1", "--threads", "1"]


def test_rank_correlation_is_spearmans():
    """Ranks 0 1 2 3 and 1 0 3 2: 1 - 6 * 4 / (4 * 15) = 0.6; ties have the mean of their ranks."""
    assert order.spearman([1, 5, 6, 100], [3, 2, 9, 8]) == pytest.approx(0.6)
    assert order.spearman([1, 2, 3], [1, 2, 300]) == pytest.approx(1) and order.spearman([1, 2], [9, 3]) == -1
    assert order.spearman([1, 1, 2], [1, 1, 5]) == pytest.approx(1) and order.spearman([1, 1], [1, 2]) == 0
    low, high = order.interval(0.6, 40)
    assert -1 < order.interval(0.6, 10)[0] < low < 0.6 < high < 1


def test_the_order_of_all_runs_is_read_from_the_files_of_the_other_questions(tmp_path, capsys):
    """Five runs whose selectivity has the scorer's order but for two; one more is another question's too."""
    cells = [
        {"setting": str(n), "seed": 0, "changes": [str(n)], "concept": 50.0 + n, "leak": 10.0, "selectivity": measured,
         "loss": 0.3 - 0.01 * n, "before": 0.3}
        for n, measured in enumerate((2, 3, 5, 4, 9))
    ]  # fmt: skip
    told = {"protocol": {"concept": "character"}, "machine": {"cores": 2}}
    for name, some in (("rate", cells), ("layers", [*cells[:1], {**cells[1], "changes": ["x"], "selectivity": None}])):
        (tmp_path / f"learning_{name}.json").write_text(json.dumps({"question": name, **told, "cells": some}))
    main(["selectivity", "--out", str(tmp_path)])
    assert "| selectivity | 5 | 0.90 |" in capsys.readouterr().out
    result = json.loads((tmp_path / "learning_selectivity.json").read_text())
    assert result[order.SCORE]["rho"] == pytest.approx(1) and (tmp_path / "learning_selectivity.png").is_file()
    moments = [{"step": n, **{k: cells[n][k] for k in ("concept", "leak", "selectivity", "loss")}} for n in (0, 4)]
    of_best = {"setting": "a", "seed": 0, "changes": [], "moments": moments, "before": 0.3}
    path = tmp_path / "learning_best.json"
    path.write_text(json.dumps({"question": "best", **told, "cells": [of_best]}))
    found = order.order(tmp_path)
    assert found["selectivity"]["runs"] == 7 and found["selectivity of whole runs"]["runs"] == 6
    path.unlink()
    assert json.loads(json.dumps(order.order(tmp_path))) == result  # its own file is none of the questions


def test_a_run_loses_what_its_named_step_lacks_to_the_best():
    moments = [{"step": s, "concept": c, "leak": 5.0} for s, c in ((50, 40.0), (100, 65.0), (150, 61.0))]
    cell = {"setting": "a", "seed": 0, "moments": moments, "named": 150}
    assert best.found(cell) == SimpleNamespace(best=100, best_score=60, named_score=56, lost=4, last_score=56)
    text = best.table({"cells": [cell, {**cell, "named": 100}]})
    assert "| a | 0 | 150 | 56 | 100 | 60 | 4 | 56 |" in text and "best: 1 of 2 runs" in text


@pytest.mark.slow
def test_the_shortest_form_of_best(tmp_path, capsys):
    main(["best", "--only", "5 pictures", "--steps", "2", *SHORTEST, "--out", str(tmp_path)])
    (cell,) = json.loads((tmp_path / "learning_best.json").read_text())["cells"]
    assert [moment["step"] for moment in cell["moments"]] == [1, 2] and cell["named"] in (1, 2)
    assert all(moment["selectivity"] > 0 < moment["loss"] for moment in cell["moments"])
    assert "of 1 runs" in capsys.readouterr().out and (tmp_path / "learning_best.png").is_file()


@pytest.mark.slow
def test_the_shortest_form_of_reach(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(reach, "WANTED", 0)  # reached at once: the run ends there
    monkeypatch.setattr(reach, "EVERY", 1)
    some = ["LoRA Trainer, 1e-3", "TrainLoraNode, 2e-3"]
    main(["reach", "--only", *some, "--steps", "2", *SHORTEST, "--out", str(tmp_path)])
    for cell, name in zip(json.loads((tmp_path / "learning_reach.json").read_text())["cells"], some, strict=True):
        ((step, seconds, processor, score),) = cell["curve"]
        assert (cell["setting"], step, cell["reached"]) == (name, 1, True) and processor > 0 and 0 < seconds < 60
        assert 0 <= score < 60
    assert "| LoRA Trainer, 1e-3 | 1 | 1 | 1 |" in capsys.readouterr().out


def test_every_trainer_has_three_rates_and_runs_take_turns():
    names = list(reach.SETTINGS)
    assert [name.partition(",")[0] for name in names] == ["LoRA Trainer", "TrainLoraNode"] * 3
    assert len(set(reach.SETTINGS.values())) == 6


@pytest.mark.long
def test_the_lora_of_diffusers_does_the_same_in_our_layers(monkeypatch):
    """Merged into ComfyUI's transformer it predicts what diffusers' model with its own LoRA predicts."""
    pytest.importorskip("diffusers", reason="diffusers, a development requirement, is not installed")
    from bench.learning import trainers

    kept, whole = [], trainers.diffusers_model

    def keeping(trainer):
        assert isinstance(trainer, Trainer)
        kept.append(whole(trainer))
        return kept[-1]

    monkeypatch.setattr(trainers, "diffusers_model", keeping)
    settings = ("trainer=diffusers", "learning_rate=1e-2")
    taught = teach(settings, 0, Protocol(steps=2))
    ((_, transformer, places),) = kept
    assert taught.steps == 2 and taught.seconds > 0 and taught.history is None
    x, t = torch.randn(1, 128, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([0.6])
    text = flow.text(["a waving vorn creature in the snow"])
    with torch.no_grad():
        theirs = transformer(x.flatten(2).transpose(1, 2), text.embeds, t, *places, return_dict=False)[0]
        theirs = theirs.transpose(1, 2).reshape(x.shape)
        ours, base = (flow.velocity(adapted(changes), x, t, text) for changes in (taught.changes, {}))
    assert (ours - base).square().mean() > 1e-4
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-3)
