"""Verdicts on single images after a real training of nano, with odd pictures planted among clean ones."""

import pytest

from bench import judging

WRONG, ALL = ("wrong", "noise"), tuple(judging.EXPECTED)


@pytest.mark.long
def test_odd_pictures_are_named_and_clean_ones_are_not(nano, tmp_path, full_size):
    """Reduced to a few steps, after which wrong captions and noise are named by what the base model knows."""
    steps, planted, clean = (judging.STEPS, ALL, judging.CLEAN) if full_size else (8, WRONG, 7)
    judging.write("character", 31, tmp_path, planted, clean)
    verdicts = judging.judged((nano.model, nano.clip, nano.vae), tmp_path, 31, steps)
    found = {v.name: v for v in verdicts}
    assert len(found) == clean + len(planted) and set(planted) < found.keys()
    assert all(v.right for v in verdicts), judging.described("character:31", verdicts)
    assert "orrect the caption" in found["wrong"].reason and "Look at the file" in found["noise"].reason
