"""What is measured between steps: held-out images, every image alone, and what that says about each."""

import csv
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from support import tiny_caches, tiny_flux2

from flux2_train.adapters import files
from flux2_train.config import TrainConfig
from flux2_train.data.samples import samples
from flux2_train.errors import UserError
from flux2_train.host.borrow import borrow, training_mode
from flux2_train.run import events
from flux2_train.run.events import ImageLoss
from flux2_train.run.folder import RunFolder
from flux2_train.run.image_files import ImageFiles, read_losses
from flux2_train.run.judging import judge, summary
from flux2_train.run.resume import AUTO
from flux2_train.run.session import train
from flux2_train.run.trainer import Trainer
from flux2_train.run.validation import TIMES, kept_out
from flux2_train.validation import HeldOutConfig

SHORT = TrainConfig(name="watched", steps=4, rank=2, learning_rate=1e-2, validation_items=2, checkpointing=False)


def trained(config=SHORT, items=5, wired=None):
    trainer = Trainer(tiny_flux2(), *tiny_caches(items), config, held_out=wired)
    with torch.inference_mode(), closing(trainer.run()) as run:
        return trainer, list(run)


def lora_of(trainer):
    return files.state_dict(trainer.adapters, torch.float32)


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def part(caches, items):
    """The caches with these items alone."""
    dataset = replace(caches[0].dataset, items=items)
    return tuple(replace(cache, dataset=dataset) for cache in caches)


@pytest.fixture(scope="module")
def plain():
    return trained()


def validated(told):
    return {e.step: e.loss for e in told if isinstance(e, events.Validated)}


def errors_by_hand(trainer, sample, seed):
    """Mean of (v - (noise - x0))^2 at x_t = (1 - t) x0 + t noise for each of the fixed times."""
    generator, errors = torch.Generator().manual_seed(seed), []
    with torch.inference_mode(), borrow(trainer.model, trainer.adapters.deltas()) as borrowed:
        for time in TIMES:
            noise = torch.randn(sample.latent.shape, generator=generator)
            x_t = (1 - time) * sample.latent + time * noise
            with training_mode(), torch.no_grad():
                v = trainer.predict(borrowed, x_t, torch.tensor([time]), [sample])
            errors.append(((v - (noise - sample.latent)) ** 2).mean().item())
    return errors


def test_measuring_is_done_as_often_as_asked_and_changes_no_bit(plain):
    often, told = trained(replace(SHORT, held_out=HeldOutConfig(every=2, per_image=True, per_image_every=3)))
    assert list(validated(told)) == [0, 2, 4] and list(validated(plain[1])) == [0, 4]
    assert [e.step for e in told if isinstance(e, events.ImagesMeasured)] == [0, 3, 4]
    assert {step: validated(told)[step] for step in (0, 4)} == validated(plain[1])
    assert same(lora_of(often), lora_of(plain[0]))


def test_every_image_alone_is_measured_with_and_without_its_caption():
    trainer, told = trained(replace(SHORT, held_out=HeldOutConfig(per_image=True)))
    last = next(e for e in reversed(told) if isinstance(e, events.ImagesMeasured))
    assert [i.path for i in last.images] == [item.path for item in trainer.samples.items]
    for number in (0, 3):
        sample = trainer.samples[number]
        without = replace(sample, embeds=trainer.blank)
        # The by-hand interpolation rounds once more than lerp: a few units in the last of 24 bits
        assert last.images[number].with_caption == pytest.approx(errors_by_hand(trainer, sample, number), rel=1e-5)
        assert last.images[number].without == pytest.approx(errors_by_hand(trainer, without, number), rel=1e-5)


def test_a_share_is_never_trained_on_and_its_loss_is_told():
    config = replace(SHORT, steps=12, held_out=HeldOutConfig(share=0.4, every=6))
    trainer, told = trained(config)
    out = {item.view.digest for item in trainer.held_out.items}
    assert len(out) == len(trainer.held_out) == 2 and len(trainer.samples) == 3
    assert not out & {item.view.digest for item in trainer.samples.items}
    assert all(e.held_out for e in told if isinstance(e, events.Validated))
    expected = [sum(errors_by_hand(trainer, trainer.held_out[i], i)) / len(TIMES) for i in range(2)]
    assert validated(told)[12] == pytest.approx(sum(expected) / 2, rel=1e-5)
    alone = Trainer(tiny_flux2(), *part(tiny_caches(5), trainer.samples.items), replace(SHORT, steps=12))
    with torch.inference_mode(), closing(alone.run()) as run:
        list(run)
    assert same(lora_of(trainer), lora_of(alone))  # as if the others were not there at all


def test_the_seed_draws_the_share_and_an_image_goes_with_all_its_sizes():
    whole = samples(*tiny_caches(5))
    drawn = [{i.view.digest for i in kept_out(whole, HeldOutConfig(0.4, seed))[1].items} for seed in range(8)]
    assert len({frozenset(d) for d in drawn}) > 1
    assert kept_out(whole, HeldOutConfig(0.4, 3))[1].items == kept_out(whole, HeldOutConfig(0.4, 3))[1].items
    twice = whole.only([0, 1, 2, 3, 4, 0, 1, 2, 3, 4])
    trained_on, out = kept_out(twice, HeldOutConfig(0.4, 0))
    assert len(out) == 4 and not {i.view for i in out.items} & {i.view for i in trained_on.items}
    with pytest.raises(UserError, match="keeps 1 of 1 images out"):
        kept_out(whole.only([0]), HeldOutConfig(0.5))


def test_held_out_images_of_their_own_are_measured_and_told_if_they_are_trained_on(plain):
    caches = tiny_caches(7)
    held_out = part(caches, caches[0].dataset.items[5:])
    trainer, told = trained(wired=held_out)
    assert not [e for e in told if isinstance(e, events.Warned)]
    assert all(e.held_out for e in told if isinstance(e, events.Validated))
    assert validated(told)[0] != validated(plain[1])[0] and same(lora_of(trainer), lora_of(plain[0]))
    name = caches[0].dataset.items[4].path.name
    _, told = trained(replace(SHORT, steps=1), wired=part(caches, caches[0].dataset.items[4:]))
    assert [e for e in told if isinstance(e, events.Warned) and f"1 held-out images are trained on as well ({name}" in
            e.text]  # fmt: skip
    with pytest.raises(UserError, match="a share of the data set is held out too"):
        trained(replace(SHORT, held_out=HeldOutConfig(share=0.2)), wired=held_out)


def losses(name, start, now, without, held_out=False):
    """An image before and after training."""
    return [
        ImageLoss(Path(name), held_out, (loss,) * 4, (plain,) * 4) for loss, plain in ((start, 2.0), (now, without))
    ]


ORDINARY = [losses(f"{n}.png", 1.0, 0.60 + 0.01 * n, 0.80 + 0.01 * n) for n in range(7)]


@pytest.mark.parametrize("odd, verdict", [
    (losses("odd", 1.0, 0.05, 0.07), "memorised"), (losses("odd", 1.0, 0.98, 1.40), "not learnable"),
    (losses("odd", 1.0, 0.70, 0.70), "mislabelled"), (losses("odd", 1.0, 0.62, 0.81), ""),
    (losses("odd", 1.0, 0.05, 0.07, held_out=True), "held out"),
])  # fmt: skip
def test_an_image_that_stands_out_is_named(odd, verdict):
    first, last = zip(*ORDINARY, odd, strict=True)
    judged = judge(first, last)
    assert [j.verdict for j in judged] == [*[""] * 7, verdict]
    assert judged[-1].fall == pytest.approx(1 - odd[1].with_caption[0] / odd[0].with_caption[0])
    named = [line for line in summary(judged) if "odd" in line]
    assert bool(named) == (verdict in ("memorised", "not learnable", "mislabelled"))


def test_few_images_are_not_judged_and_a_memorised_set_is():
    first, last = zip(*ORDINARY[:3], losses("odd", 1.0, 0.05, 0.07), strict=True)
    assert not any(j.verdict for j in judge(first, last))
    first, last = zip(*ORDINARY, losses("new", 1.0, 1.1, 1.2, held_out=True), strict=True)
    assert "the set as a whole is memorised" in summary(judge(first, last))[-1]


def test_the_files_name_the_images(tmp_path):
    folder = RunFolder(tmp_path)
    first, last = zip(*ORDINARY, losses("odd", 1.0, 0.98, 1.40), strict=True)
    for step, images in ((0, first), (50, last)):
        ImageFiles(folder)(events.ImagesMeasured(step, images))  # each time anew, as after taking a run up
    assert read_losses(folder.images / "step_000050.csv") == list(last)
    with folder.image_table.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows if row["verdict"] == "not learnable"] == ["odd"]
    assert float(rows[-1]["fall"]) == pytest.approx(0.02)
    with Image.open(folder.image_sheet) as sheet:
        assert sheet.width > 6 * 192


def test_a_finished_run_is_done_again_to_measure_other_images(tmp_path):
    """The same graph once more trains nothing; with held-out images it has to."""

    def steps(wired=None):
        told = []
        trainer = Trainer(tiny_flux2(), *tiny_caches(5), replace(SHORT, steps=1), held_out=wired)
        with torch.inference_mode():
            train(trainer, tmp_path / "loras", tmp_path / "runs", told.append, AUTO)
        return sum(isinstance(event, events.Stepped) for event in told)

    caches = tiny_caches(7)
    assert [steps(), steps(), steps(part(caches, caches[0].dataset.items[5:]))] == [1, 0, 1]
