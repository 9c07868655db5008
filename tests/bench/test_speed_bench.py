"""bench.speed: every contender trains the same problem, and the ratio's interval is one."""

import json
import os
from pathlib import Path

import forks
import pytest

from bench.speed import cards
from bench.speed.ratios import ratio

ROOT = Path(__file__).resolve().parents[2]
TINY = "--hidden 128 --double 1 --single 1 --context 64 --tokens 16 --pairs 3 --threads 1 --device cpu"
ONE = "--checkpointing on --against diffusers"  # the other half of what it can do costs half a minute more


@pytest.fixture(scope="module")
def result(tmp_path_factory, full_size):
    pytest.importorskip("diffusers", reason="diffusers, a development requirement, is not installed")
    out = tmp_path_factory.mktemp("speed") / "speed.json"
    more = ["node", "int8"] if full_size else []
    command = ["-m", "bench.speed", *TINY.split(), *ONE.split(), *more, "--out", str(out)]
    done = forks.run(command, {**os.environ, "OMP_NUM_THREADS": "1"}, ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


@pytest.mark.long
def test_we_and_diffusers_train_the_same_problem(result):
    ours, theirs = result["modes"]["checkpointing on"]["ours"], result["modes"]["checkpointing on"]["diffusers"]
    assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-4)  # after updates of their adapters too
    assert theirs["time_ratio"]["pairs"] == 3
    assert ours["peak_mb"] > 100 and len(ours["all_seconds"]) == len(ours["all_adds"]) == 3
    assert theirs["adds_ratio"]["pairs"] == 3 and ours["adds"] > 1000  # a step has thousands of operations


@pytest.mark.slow
def test_comfyuis_node_is_measured_step_by_step(result):
    assert len(result["modes"]["checkpointing on"]["node"]["all_seconds"]) == 3
    assert 0 < result["modes"]["checkpointing on"]["node"]["time_ratio"]["low"] < 100


@pytest.mark.slow
def test_8_bits_learn_nearly_the_same(result):
    ours, theirs = result["modes"]["checkpointing on"]["ours"], result["modes"]["checkpointing on"]["int8"]
    assert ours["losses"] == pytest.approx(theirs["losses"], rel=0.05) and ours["losses"] != theirs["losses"]


@pytest.mark.long
def test_the_machine_is_named(result):
    assert result["machine"]["processor"] and result["machine"]["cores"] == os.cpu_count()
    assert {"torch", "diffusers", "peft", "comfyui"} <= result["machine"].keys()


@pytest.mark.long
def test_a_step_of_ours_is_fewer_operations():
    """Counted, so it is the same on every machine: what joins Linear and LoRA, and the rotation, has to stay in use."""
    pytest.importorskip("diffusers", reason="diffusers, a development requirement, is not installed")
    done = forks.run(["-m", "bench.speed.kernels", "--each"], dict(os.environ), ROOT)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    for (ours, own), (theirs, _) in (zip(rows[i : i + 4 : 2], rows[i + 1 : i + 4 : 2], strict=True) for i in (0, 4)):
        assert ours["contender"] == "ours" and theirs["contender"] == "diffusers"
        assert 0 < ours["operations"] < 0.71 * theirs["operations"]
        assert ours["megabytes"] < 0.7 * theirs["megabytes"]
        assert own["aten::addmm_"] >= 18 and own["comfy_kitchen::apply_rope"] >= 4


@pytest.mark.long
def test_the_interval_holds_the_median_and_shrinks_with_more_pairs():
    few, many = (ratio([1.0, 1.1, 0.9] * n, [1.0] * 3 * n) for n in (1, 30))
    assert few.low <= few.median == 1.0 <= few.high
    assert few.high - few.low > many.high - many.low
    assert ratio([2.0] * 5, [1.0] * 5) == ratio([4.0] * 5, [2.0] * 5)
    assert ratio([2.0] * 5, [1.0] * 5).low == 2.0


@pytest.mark.long
def test_seconds_on_cards_are_added_up(capsys):
    cards.main(["--flavours", "klein-4b", "--resolutions", "512"])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0].split(", ")[0].removeprefix("| ") for row in rows] == [card.name for card in cards.CARDS]
    for card, (*_, arithmetic, memory, bus, seconds, limit) in zip(cards.CARDS, rows, strict=True):
        arithmetic, memory, bus, seconds = map(float, (arithmetic, memory, bus, seconds))
        assert seconds == pytest.approx(max(arithmetic + memory, bus), abs=0.011) and memory > 0
        # Two operations for each token and number of 3.9 G, in two products at least, in four where blocks are
        # recomputed; of a double block each token sees one half. Attention comes to them.
        passes = [products * 2 * 1536 / card.flops for products in (2 * 2.9e9, 4 * 4.5e9)]
        assert passes[0] - 0.005 < arithmetic < passes[1] + 0.005
        assert limit.removesuffix(" |") in ("arithmetic", "memory", "bus")
