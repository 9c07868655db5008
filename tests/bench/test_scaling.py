"""bench.scaling: several processes and one are measured beside each other."""

import json

import pytest

from bench import scaling


@pytest.mark.slow
def test_the_shortest_form_measures_one_process_and_two(tmp_path, capsys):
    out = tmp_path / "scaling.json"
    scaling.main(["--images", "2", "--steps", "2", "--repeats", "1", "--pixels", "64", "--out", str(out)])
    found = json.loads(out.read_text())
    assert {name: each["images in a step"] for name, each in found.items() if name != "machine"} == {
        "weak 1": 2, "weak 2": 4, "strong 1": 2, "strong 2": 2,
    }  # fmt: skip
    assert all(0 < each["own"] < each["steps"] for name, each in found.items() if name != "machine")
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_a_problem_is_passed_on_to_its_processes_as_words():
    problem = scaling.Problem("cuda", "klein-4b", "bf16", 512, 5, "--lowvram")
    words = problem.words()
    assert dict(word.split("=", 1) for word in words) == {
        "--device": "cuda", "--flavour": "klein-4b", "--precision": "bf16", "--pixels": "512", "--steps": "5",
        "--comfyui": "--lowvram",
    }  # fmt: skip
    assert [scaling.doubled(count) for count in (1, 2, 3, 4, 8)] == [[1], [1, 2], [1, 2], [1, 2, 4], [1, 2, 4, 8]]


def test_a_line_says_what_limits():
    alone = {"images in a step": 4, "steps": 1.0, "own": 0.9}
    said = scaling.line("weak 2", {"images in a step": 8, "steps": 1.25, "own": 1.125}, alone)
    assert "1.60 times the images per second" in said and "(1.25 times what" in said and "all else 0.125 s" in said
