"""Previews and losses of single images in a run of two processes: the main one paints, both measure, neither waits."""

import pickle
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from children import run_in_two_processes
from support import brief_flux2, tiny_caches

from flux2_train.events import ImagesMeasured, Previewed
from flux2_train.flavours import FLAVOURS
from flux2_train.host.loading import files
from flux2_train.runs.prepare import new_trainer
from flux2_train.settings.previews import PreviewSettings, Prompt, ValidationLossSettings
from flux2_train.settings.training import TrainingSettings

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).resolve().parents[1] / "processes" / "evaluate_tiny.py"
CONFIG = TrainingSettings(steps=4, rank=2, learning_rate=2e-3, batch=2, seed=5, checkpointing=False,
                     validation_loss=ValidationLossSettings(share=0.2, per_image=True, per_image_every=2))  # fmt: skip
PAINTING = PreviewSettings((Prompt("zbot"), Prompt("a toy")), width=32, height=48, steps=1, guidance=1.0, every=2)


@pytest.fixture(scope="module")
def caches():
    """(embeds, latents) with the prompts' embeds among the captions'."""
    embeds, latents = tiny_caches(repeats=2)
    generator = torch.Generator().manual_seed(1)
    prompts = {text: torch.randn(1, 7, 96, generator=generator) for text in PAINTING.texts}
    return replace(embeds, embeds={**embeds.embeds, **prompts}), latents


def launch(folder, *problems):
    """What each of two processes gave for each problem: (matrices, events, prompts whose base it has painted)."""
    (folder / "problems").write_bytes(pickle.dumps(problems))
    done = run_in_two_processes(SCRIPT, folder / "problems", folder / "out")
    assert done.returncode == 0, done.stderr
    return [pickle.loads((folder / f"out.{i}").read_bytes()) for i in (0, 1)]


def measured(received):
    return [event for event in received if isinstance(event, ImagesMeasured)]


@pytest.fixture(scope="module")
def watched(caches, tmp_path_factory, comfy_folders):
    """What each of two processes gave that paint and measure, and then train without either."""
    vae = files.locate(FLAVOURS["nano"].vaes)
    bare = replace(CONFIG, validation_loss=ValidationLossSettings(0.2))
    return launch(tmp_path_factory.mktemp("two"), (caches, CONFIG, PAINTING, vae), (caches, bare, None, vae))


@pytest.mark.long
def test_the_main_process_paints_and_the_run_is_the_same(watched):
    ((main, received, painted), (plain, bare, _)), ((other, silent, unpainted), _) = watched
    assert (painted, unpainted, silent) == (2, 0, [])
    previews = [event for event in received if isinstance(event, Previewed)]
    assert [p.step for p in previews] == [0, 2, 4] and [e.step for e in measured(received)] == [0, 2, 4]
    assert not torch.equal(previews[-1].pictures[0].painted, previews[-1].pictures[0].base)
    assert not [e for e in bare if isinstance(e, (Previewed, ImagesMeasured))]
    for name, pair in plain.items():
        for expected, ours, theirs in zip(pair, main[name], other[name], strict=True):
            assert torch.equal(ours, expected) and torch.equal(theirs, expected), name


@pytest.mark.long
def test_what_two_processes_measure_is_what_one_does(caches, watched):
    """Each image is measured by one of the two, and the other adds nothing to it."""
    trainer = new_trainer(brief_flux2(), *caches, replace(CONFIG, batch=4))
    with torch.inference_mode(), closing(trainer.run()) as run:
        expected = measured(list(run))
    ours = measured(watched[0][0][1])
    assert [[i.path for i in e.images] for e in ours] == [[i.path for i in e.images] for e in expected]
    assert [i.held_out for i in ours[0].images] == [False] * 4 + [True]
    assert len({(i.with_caption, i.others) for i in ours[0].images}) == 5
    for a, b in zip(ours, expected, strict=True):
        for mine, whole in zip(a.images, b.images, strict=True):
            assert mine.with_caption == pytest.approx(whole.with_caption, rel=1e-5)
            assert dict(mine.others) == pytest.approx(dict(whole.others), rel=1e-5)
