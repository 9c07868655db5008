"""Rows of bench.gpu about several cards. On one device they are absent; test_other_device.py runs this on three."""

import pytest

from bench.gpu import models
from bench.gpu.results import Results
from bench.gpu.several import over_cards, scaling
from flux2_train.host.system import cards

pytestmark = pytest.mark.long  # bench is for developers
ROW = {"flavour": "nano", "pixels": 64, "precision": "fp32"}
CARD = {"card": {"type": "cuda", "name": "NVIDIA X 1", "computes_in": "bf16"}, "versions": {"torch": "2.11"}}


@pytest.mark.skipif(len(cards.seen()) > 1, reason="there are several cards")
def test_with_one_card_the_rows_are_absent():
    assert over_cards(**ROW, accumulate=4) == {"absent": "ComfyUI sees one card"}


@pytest.mark.skipif(len(cards.seen()) < 3, reason="test_other_device.py runs this on three devices")
def test_a_row_over_cards_is_measured_with_several_passes_in_flight(monkeypatch):
    monkeypatch.setattr(models, "TEXT", 16)  # tokens
    one, several = over_cards(**ROW, accumulate=1), over_cards(**ROW, accumulate=4)
    assert "passes in flight" in several["layout"] and "passes" not in one["layout"], several["layout"]
    assert several["seconds_of_a_pass"] == several["seconds"] / 4 and one["seconds_of_a_pass"] == one["seconds"]
    assert len(several["planned_peaks"]) == 3 and several["planned_peaks"] != one["planned_peaks"]


@pytest.mark.slow
def test_processes_are_measured_beside_each_other():
    found = scaling(**ROW, comfyui="")
    assert list(found["cases"]) == ["weak 1", "weak 2", "strong 1", "strong 2"]
    assert all(0 < case["own"] < case["steps"] for case in found["cases"].values())
    assert found["words"].count("times the images per second") == 4


def test_peaks_of_each_card_are_shown_beside_what_was_planned(tmp_path):
    results = Results(CARD, tmp_path / "gpu_x.json")
    results.add("cards", {"seconds": 1.0, "peaks": [2e9, 3e9], "planned_peaks": [2.1e9, 2.9e9]})
    assert "on each card 2.00 GB (planned 2.10), 3.00 GB (planned 2.90)" in results.line("cards")
