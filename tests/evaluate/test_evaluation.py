"""What is measured between steps: held-out images, every image alone, and what that says about each."""

import csv
import math
import re
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from support import brief_flux2, same, state_dict, tiny_caches

from flux2_train import events
from flux2_train.data.held_out import kept_out
from flux2_train.data.samples import samples
from flux2_train.errors import UserError
from flux2_train.evaluate.fixed_noise import NOISY, OTHERS, TIMES, lenders
from flux2_train.evaluate.verdicts import ADVICE, judge, summary
from flux2_train.events import ImageLoss
from flux2_train.host.borrowed.borrow import borrow, training_mode
from flux2_train.runs.folder import RunFolder
from flux2_train.runs.prepare import new_trainer
from flux2_train.runs.resume import AUTO
from flux2_train.runs.session import train
from flux2_train.runs.writers.image_files import HEADER, ImageFiles, read_losses
from flux2_train.settings.previews import ValidationLossSettings
from flux2_train.settings.training import TrainingSettings

SHORT = TrainingSettings(name="watched", steps=4, rank=2, learning_rate=1e-2, validation_items=2, checkpointing=False)


def trained(config=SHORT, items=5, wired=None):
    trainer = new_trainer(brief_flux2(), *tiny_caches(items), config, held_out=wired)
    with torch.inference_mode(), closing(trainer.run()) as run:
        return trainer, list(run)


def lora_of(trainer):
    return state_dict(trainer.adapters, torch.float32)


def part(caches, items):
    """The caches with these items alone."""
    dataset = replace(caches[0].dataset, items=items)
    return tuple(replace(cache, dataset=dataset) for cache in caches)


@pytest.fixture(scope="module")
def plain():
    return trained()


def validated(received):
    return {e.step: e.loss for e in received if isinstance(e, events.Validated)}


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


@pytest.mark.long
def test_measuring_is_done_as_often_as_asked_and_changes_no_bit(plain):
    often, received = trained(
        replace(SHORT, validation_loss=ValidationLossSettings(every=2, per_image=True, per_image_every=3))
    )
    assert list(validated(received)) == [0, 2, 4] and list(validated(plain[1])) == [0, 4]
    assert [e.step for e in received if isinstance(e, events.ImagesMeasured)] == [0, 3, 4]
    assert {step: validated(received)[step] for step in (0, 4)} == validated(plain[1])
    assert same(lora_of(often), lora_of(plain[0]))


@pytest.mark.long
def test_every_image_alone_is_measured_with_its_caption_and_with_others():
    """Five images in two captions, of the robot waving and of the others: who has one borrows the other."""
    trainer, received = trained(replace(SHORT, validation_loss=ValidationLossSettings(per_image=True)))
    last = next(e for e in reversed(received) if isinstance(e, events.ImagesMeasured))
    items = trainer.samples.items
    assert [i.path for i in last.images] == [item.path for item in items]
    for number in (0, 3):
        sample, found = trainer.samples[number], last.images[number]
        # The by-hand interpolation rounds once more than lerp: a few units in the last of 24 bits
        assert found.with_caption == pytest.approx(errors_by_hand(trainer, sample, number), rel=1e-5)
        assert len(found.others) == min(OTHERS, len({item.caption for item in items}) - 1) > 0
        for name, loss in found.others:
            (lender,) = [i for i, item in enumerate(items) if item.path.name == name]
            assert items[lender].caption != items[number].caption
            borrowed = replace(sample, embeds=trainer.samples[lender].embeds)
            expected = errors_by_hand(trainer, borrowed, number)[-len(NOISY) :]
            assert loss == pytest.approx(sum(expected) / len(NOISY), rel=1e-5)


def test_captions_are_borrowed_evenly_and_never_ones_own():
    captions = ["a", "b", "c", "a", "d", "e", "f", "b"]
    for place, own in enumerate(captions):
        lent = lenders(captions, own, place)
        assert len({captions[i] for i in lent} - {own}) == OTHERS == len(lent)
    assert {i for place, own in enumerate(captions) for i in lenders(captions, own, place)} == {0, 1, 2, 4, 5, 6}
    assert lenders(["a", "a"], "a", 1) == [] and lenders(["a", "b"], "a", 5) == [1]
    assert len(lenders(["a", "b"], "new", 0)) == 2


@pytest.mark.long
def test_a_share_is_never_trained_on_and_its_loss_is_told():
    config = replace(SHORT, steps=12, validation_loss=ValidationLossSettings(share=0.4, every=6))
    trainer, received = trained(config)
    out = {item.view.digest for item in trainer.held_out.items}
    assert len(out) == len(trainer.held_out) == 2 and len(trainer.samples) == 3
    assert not out & {item.view.digest for item in trainer.samples.items}
    assert all(e.held_out for e in received if isinstance(e, events.Validated))
    expected = [sum(errors_by_hand(trainer, trainer.held_out[i], i)) / len(TIMES) for i in range(2)]
    assert validated(received)[12] == pytest.approx(sum(expected) / 2, rel=1e-5)
    alone = new_trainer(brief_flux2(), *part(tiny_caches(5), trainer.samples.items), replace(SHORT, steps=12))
    with torch.inference_mode(), closing(alone.run()) as run:
        list(run)
    assert same(lora_of(trainer), lora_of(alone))  # as if the others were not there at all


def test_the_seed_draws_the_share_and_an_image_goes_with_all_its_sizes():
    whole = samples(*tiny_caches(5))
    drawn = [{i.view.digest for i in kept_out(whole, ValidationLossSettings(0.4, seed))[1].items} for seed in range(8)]
    assert len({frozenset(d) for d in drawn}) > 1
    assert (
        kept_out(whole, ValidationLossSettings(0.4, 3))[1].items
        == kept_out(whole, ValidationLossSettings(0.4, 3))[1].items
    )
    twice = whole.only([0, 1, 2, 3, 4, 0, 1, 2, 3, 4])
    trained_on, out = kept_out(twice, ValidationLossSettings(0.4, 0))
    assert len(out) == 4 and not {i.view for i in out.items} & {i.view for i in trained_on.items}
    with pytest.raises(UserError, match="keeps 1 of 1 image out"):
        kept_out(whole.only([0]), ValidationLossSettings(0.5))


def test_regularisation_images_are_never_held_out():
    """Two images of five are of the subject, and one of these two is kept out."""
    embeds, latents = tiny_caches(5)
    dataset = latents.dataset
    items = tuple(replace(item, source=int(number > 1)) for number, item in enumerate(dataset.items))
    mixed = replace(dataset, items=items, sources=(*dataset.sources, replace(dataset.sources[0], is_reg=True)))
    whole = samples(replace(embeds, dataset=mixed), replace(latents, dataset=mixed))
    for seed in range(8):
        trained_on, out = kept_out(whole, ValidationLossSettings(0.5, seed))
        assert [item.source for item in out.items] == [0] and len(trained_on) == 4


@pytest.mark.long
def test_held_out_images_of_their_own_are_measured_and_told_if_they_are_trained_on(plain):
    caches = tiny_caches(7)
    held_out = part(caches, caches[0].dataset.items[5:])
    trainer, received = trained(wired=held_out)
    assert not [e for e in received if isinstance(e, events.Warned)]
    assert all(e.held_out for e in received if isinstance(e, events.Validated))
    assert validated(received)[0] != validated(plain[1])[0] and same(lora_of(trainer), lora_of(plain[0]))
    name = caches[0].dataset.items[4].path.name
    _, received = trained(replace(SHORT, steps=1), wired=part(caches, caches[0].dataset.items[4:]))
    warnings = [e.text for e in received if isinstance(e, events.Warned)]
    assert any(f"1 held-out image is trained on as well ({name}" in text for text in warnings)
    with pytest.raises(UserError, match="a share of the data set is held out too"):
        trained(replace(SHORT, validation_loss=ValidationLossSettings(share=0.2)), wired=held_out)


def losses(name, start, now, advantage=0.5, held_out=False):
    """An image at the start and now: losses at the (quiet, noisy) times, and its advantage both times."""
    found = []
    for quiet, noisy in (start, now):
        others = tuple((f"lender {n}", noisy * math.exp(advantage)) for n in range(OTHERS))
        found.append(ImageLoss(Path(name), held_out, (quiet, quiet, noisy, noisy), others))
    return found


def changed(name, factor, **more):
    return losses(name, (1.0, 1.0), (factor, factor), **more)


ORDINARY = [changed(f"{n}.png", 0.60 + 0.01 * n, advantage=0.4 + 0.02 * n) for n in range(9)]
ODD = {
    "far less loss": (changed("odd", 0.2), "memorised"),
    "nothing learned": (changed("odd", 0.97), "not learnable"),
    "noise": (losses("odd", (9.0, 2.0), (8.0, 1.9), advantage=0.0), "not learnable"),
    "a wrong caption": (changed("odd", 0.62, advantage=0.01), "mislabelled"),
    "a wrong caption that was learned": (changed("odd", 0.2, advantage=-0.3), "mislabelled"),
    "a caption that says little": (changed("odd", 0.62, advantage=0.1), ""),
    "like the others": (changed("odd", 0.55, advantage=0.3), ""),
    "a little less loss": (changed("odd", 0.45), ""),
    "a rich picture": (losses("odd", (2.2, 2.2), (1.2, 1.2)), ""),
    "held out": (changed("odd", 0.2, held_out=True), "held out"),
}


@pytest.mark.parametrize("kind", ODD)
def test_an_image_that_stands_out_is_named_with_a_reason(kind):
    odd, verdict = ODD[kind]
    first, last = zip(*ORDINARY, odd, strict=True)
    judged = judge(first, last)
    assert [j.verdict for j in judged] == [*[""] * 9, verdict]
    named = verdict in ADVICE
    assert bool(judged[-1].reason) == named and not any(j.reason for j in judged[:-1])
    assert [line for line in summary(judged) if "odd" in line] == (
        [f"{verdict}: odd ({ADVICE[verdict]})"] if named else []
    )


@pytest.mark.parametrize("kind, words", [
    ("far less loss", r"fell by 80% while that of the others fell by 37%: it is seen more often.*Lower its repeats"),
    ("nothing learned", r"fell by 3% while that of the others fell by 36%: it shows something else.*take it out"),
    ("noise", r"its loss is 12.4 times the others': noise.*replace it"),
    ("a wrong caption", r"captions of other images fit it nearly as well as its own. Compare the two; correct"),
])  # fmt: skip
def test_a_reason_says_what_was_found_and_what_to_do(kind, words):
    odd, _ = ODD[kind]
    (judged,) = [j for j in judge(*zip(*ORDINARY, odd, strict=True)) if j.verdict]
    assert re.search(words, judged.reason)


def test_the_caption_that_fits_better_is_named():
    first, last = changed("odd", 0.6, advantage=-0.2)
    last = replace(last, others=(("7.png", 0.3), *last.others[1:]))
    judged = judge(*zip(*ORDINARY, (first, last), strict=True))
    assert "the caption of 7.png fits it better, by 50% of the loss" in judged[-1].reason


def test_a_rich_picture_among_plain_ones_is_not_called_noise():
    """Six times the others' loss where little noise is left, but the model knows most of the noise all the same."""
    plain = [losses(f"{n}.png", (0.2, 1.0), (0.1, 0.6)) for n in range(9)]
    for quiet, verdict in ((0.6, ""), (1.2, "not learnable")):  # times (0.8^2 + 0.6^2) / 2: unknown is 0.3 and 0.6
        judged = judge(*zip(*plain, losses("odd", (2 * quiet, 1.0), (quiet, 0.6)), strict=True))
        assert judged[-1].unknown == pytest.approx(quiet / 2) and judged[-1].verdict == verdict


def test_captions_that_tell_nothing_make_nobody_mislabelled():
    """One caption for all, or captions as good as each other's."""
    same_for_all = [[replace(image, others=()) for image in pair] for pair in ORDINARY]
    assert not any(j.verdict for j in judge(*zip(*same_for_all, strict=True)))
    useless = [changed(f"{n}.png", 0.6, advantage=0.02 * (n % 3)) for n in range(9)]
    assert not any(j.verdict for j in judge(*zip(*useless, strict=True)))


def test_few_images_are_not_judged_and_a_memorised_set_is():
    first, last = zip(*ORDINARY[:6], changed("odd", 0.05), strict=True)
    assert not any(j.verdict for j in judge(first, last))
    first, last = zip(*ORDINARY, changed("new", 1.1, held_out=True), strict=True)
    assert "the set as a whole is memorised" in summary(judge(first, last))[-1]


def test_the_files_name_the_images(tmp_path):
    folder = RunFolder(tmp_path)
    first, last = zip(*ORDINARY, changed("odd", 0.97), strict=True)
    for step, images in ((0, first), (50, last)):
        ImageFiles(folder)(events.ImagesMeasured(step, images))  # each time anew, as after taking a run up
    assert read_losses(folder.images / "step_000050.csv") == list(last)
    with folder.image_table.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows if row["verdict"] == "not learnable"] == ["odd"]
    assert float(rows[-1]["fall"]) == pytest.approx(-math.log(0.97), rel=1e-5)
    assert "Describe that, or take it out" in rows[-1]["reason"] and not any(row["reason"] for row in rows[:-1])
    with Image.open(folder.image_sheet) as sheet:
        assert sheet.width > 6 * 192


@pytest.mark.parametrize("table", [
    "image,held out,caption t=0.2\nodd,0,1.0\n", "", ",".join(HEADER) + "\nodd,0,1.0,0.",
    ",".join(HEADER) + "\n\nodd" + ",x" * (len(HEADER) - 1) + "\n",
], ids=["other columns", "empty", "cut short", "edited"])  # fmt: skip
def test_a_table_that_is_not_ours_as_we_wrote_it_is_not_compared_with(tmp_path, table):
    folder = RunFolder(tmp_path)
    folder.images.mkdir()
    (folder.images / "step_000000.csv").write_text(table)
    last = [pair[1] for pair in ORDINARY]
    ImageFiles(folder)(events.ImagesMeasured(50, tuple(last)))
    with folder.image_table.open() as file:
        assert {float(row["fall"]) for row in csv.DictReader(file)} == {0.0}


@pytest.mark.long
def test_a_finished_run_is_done_again_to_measure_other_images(tmp_path):
    """The same graph once more trains nothing; with held-out images it has to."""

    def steps(wired=None):
        received = []
        trainer = new_trainer(brief_flux2(), *tiny_caches(5), replace(SHORT, steps=1), held_out=wired)
        with torch.inference_mode():
            train(trainer, tmp_path / "loras", tmp_path / "runs", received.append, AUTO)
        return sum(isinstance(event, events.Stepped) for event in received)

    caches = tiny_caches(7)
    assert [steps(), steps(), steps(part(caches, caches[0].dataset.items[5:]))] == [1, 0, 1]
