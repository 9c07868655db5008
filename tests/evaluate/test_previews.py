"""Previews: what is shown while training is what the graph gives with the LoRA, and training does not notice them."""

from contextlib import closing, nullcontext
from dataclasses import replace

import comfy.model_management
import comfy.patcher_extension
import pytest
import torch
from safetensors.torch import load_file, save_file
from support import state_dict, tiny_flux2, with_few_words

from bench.encoding import encode_text
from flux2_train import events
from flux2_train.adapters import read
from flux2_train.errors import UserError
from flux2_train.evaluate.previews import Previews
from flux2_train.flavours import BASE, DISTILLED, FLAVOURS
from flux2_train.host import identify
from flux2_train.host.borrowed.borrow import borrow
from flux2_train.host.loading import files as host_files
from flux2_train.host.loading import load
from flux2_train.host.lora import apply as lora
from flux2_train.host.sampling import sample as sampling
from flux2_train.runs.folder import RunFolder
from flux2_train.runs.prepare import new_trainer
from flux2_train.runs.results import write_results
from flux2_train.settings.adapter import AdapterSettings
from flux2_train.settings.base import choices
from flux2_train.settings.objective import GuidanceSettings
from flux2_train.settings.optimizer import EmaSettings
from flux2_train.settings.previews import PreviewSettings, Prompt
from flux2_train.settings.saving import SaveSettings
from flux2_train.settings.training import TrainingSettings
from flux2_train.train.preview_request import PreviewRequest

PROMPTS = ("zbot on red", "a blue owl")
SHORT = TrainingSettings(name="previews", steps=2, rank=4, learning_rate=2e-2, validation_items=0, checkpointing=False,
                    save=SaveSettings(precision="fp32", certificate=False))  # fmt: skip
CONFIG = PreviewSettings(tuple(map(Prompt, PROMPTS)), width=64, height=48, steps=2, seed=11, every=1)
END = replace(CONFIG, every=0, at_start=False)  # painted once, after the last step
ONE = replace(END, prompts=END.prompts[:1])


@pytest.fixture(scope="module")
def nano(brief_nano):
    return brief_nano


@pytest.fixture(scope="module")
def data(nano, robot):
    """The robots with the prompts' embeds beside the captions'."""
    texts = (*PROMPTS, "blurry")
    with torch.inference_mode():
        more = {text: encode_text(nano.clip, text) for text in texts}
    return replace(robot, embeds=replace(robot.embeds, embeds={**robot.embeds.embeds, **more}))


def start(nano, data, config=SHORT, previews=None):
    """(trainer, events) of a run as a node runs it."""
    trainer = new_trainer(nano.model, data.embeds, data.latents, config, previews=previews)
    with torch.inference_mode(), closing(trainer.run()) as run:
        return trainer, list(run)


def previews_of(received):
    return [event for event in received if isinstance(event, events.Previewed)]


def sampled(graph, model, prompt, config=CONFIG, number=0, **settings):
    """What FLUX.2 Sampler paints with the same settings."""
    return sampling.sample(
        model, graph.clip, graph.vae, prompt, negative=config.negative, steps=config.steps, guidance=config.guidance,
        width=config.width, height=config.height, seed=config.seed_of(number), **settings,
    )[0]  # fmt: skip


def with_lora(model, trainer, tmp_path, mode=lora.BYPASS, strength=1.0):
    saved = write_results(trainer, tmp_path / "loras", RunFolder.create(tmp_path / "runs", "run"))
    return lora.apply(model, read.load(saved.lora_path), strength, mode)


@pytest.fixture(scope="module")
def plain(nano, data):
    """A run with previews, with nothing else in it."""
    return start(nano, data, previews=PreviewRequest(CONFIG, nano.vae))


@pytest.mark.long
def test_a_preview_is_bit_for_bit_what_flux2_sampler_paints_with_the_saved_lora(nano, plain, tmp_path):
    """In bypass the LoRA of an fp32 file at scale 1 is computed as the live one is, operation by operation."""
    trainer, received = plain
    assert [p.step for p in previews_of(received)] == [0, 1, 2]
    last, model = previews_of(received)[-1], with_lora(nano.model, trainer, tmp_path)
    for prompt, picture in zip(PROMPTS, last.pictures, strict=True):
        assert torch.equal(picture.painted, sampled(nano, model, prompt))
        assert torch.equal(picture.base, sampled(nano, nano.model, prompt))
        assert not torch.equal(picture.painted, picture.base)
    first = previews_of(received)[0]
    assert all(torch.equal(p.painted, p.base) for p in first.pictures)  # nothing is learned yet
    assert first.pictures[0].base is last.pictures[0].base  # painted once


@pytest.mark.long
def test_a_prompt_may_have_a_size_seed_and_steps_of_its_own(nano, data):
    own = replace(END, prompts=(Prompt(PROMPTS[0]), Prompt(PROMPTS[1], width=32, height=80, seed=5, steps=3)))
    _, received = start(nano, data, previews=PreviewRequest(own, nano.vae))
    first, second = previews_of(received)[0].pictures
    assert torch.equal(first.base, sampled(nano, nano.model, PROMPTS[0], own))
    alone = replace(own, width=32, height=80, seed=5, steps=3)
    assert torch.equal(second.base, sampled(nano, nano.model, PROMPTS[1], replace(alone, prompts=END.prompts)))
    assert second.painted.shape == (80, 32, 3)
    assert [second.asked[name] for name in ("width", "height", "seed", "steps")] == [32, 80, 5, 3]


@pytest.mark.long
def test_a_run_with_previews_gives_the_lora_of_one_without_bit_by_bit(nano, data, plain):
    torch.manual_seed(5)
    untouched = torch.rand(1)
    torch.manual_seed(5)
    often = replace(CONFIG, every=1, sampler="euler_ancestral")
    other, _ = start(nano, data, previews=PreviewRequest(often, nano.vae))
    assert torch.equal(torch.rand(1), untouched)
    without, received = start(nano, data)
    assert not previews_of(received)
    expected = state_dict(without.adapters, torch.float32)
    for trainer in (plain[0], other):
        found = state_dict(trainer.adapters, torch.float32)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.long
def test_a_second_model_paints_with_the_lora_of_the_first(nano, another_nano, data, plain, tmp_path):
    """As the distilled klein does while the base is trained."""
    second = another_nano
    trainer, received = start(nano, data, previews=PreviewRequest(END, nano.vae, second.model))
    last = previews_of(received)[-1]
    model = with_lora(second.model, trainer, tmp_path)
    for number, prompt in enumerate(PROMPTS):
        assert torch.equal(last.pictures[number].painted, sampled(second, model, prompt))
        assert torch.equal(last.pictures[number].base, sampled(second, second.model, prompt))
        assert not torch.equal(last.pictures[number].painted, previews_of(plain[1])[-1].pictures[number].painted)
    first = state_dict(plain[0].adapters, torch.float32)
    found = state_dict(trainer.adapters, torch.float32)
    assert all(torch.equal(found[name], first[name]) for name in first)  # the first alone is trained on
    for each in (nano.model, second.model):
        assert not [m for m in each.model.modules() if "forward" in m.__dict__]


@pytest.fixture(scope="module")
def another_nano(nano, tmp_path_factory):
    """nano with other weights, as a distilled model has."""
    weights = load_file(host_files.locate(FLAVOURS["nano"].transformer_files("auto")))
    generator = torch.Generator().manual_seed(3)
    for name, weight in weights.items():
        noise = torch.randn(weight.shape, generator=generator)
        weights[name] = (weight.float() + noise * 0.02 * weight.float().std(correction=0)).to(weight.dtype)
    path = tmp_path_factory.mktemp("another") / "another.safetensors"
    save_file(weights, path)
    with torch.inference_mode():
        return replace(nano, model=with_few_words(load.load_transformer(path)))


@pytest.mark.long
def test_the_trained_model_may_be_its_own_second_one(nano, data, plain):
    _, received = start(nano, data, previews=PreviewRequest(replace(ONE, at_start=True), nano.vae, nano.model))
    expected = previews_of(plain[1])[-1].pictures[0].painted  # trained on between two paintings
    assert torch.equal(previews_of(received)[-1].pictures[0].painted, expected)


@pytest.mark.long
def test_the_mean_of_the_weights_is_painted_where_it_is_chosen(nano, data, plain, tmp_path):
    shown = {}
    for preview in (True, False):
        config = replace(SHORT, ema=EmaSettings(ema_decay=0.9, ema_export=True, ema_preview=preview))
        trainer, received = start(nano, data, config, PreviewRequest(ONE, nano.vae))
        shown[preview] = previews_of(received)[-1].pictures[0].painted
    assert torch.equal(shown[True], sampled(nano, with_lora(nano.model, trainer, tmp_path), PROMPTS[0]))
    assert torch.equal(shown[False], previews_of(plain[1])[-1].pictures[0].painted)
    assert not torch.equal(shown[True], shown[False])


SETTINGS = [
    {"width": 80}, {"height": 64}, {"steps": 2}, {"steps": 2, "sampler": "heun"}, {"guidance": 1.5}, {"seed": 13},
    {"strength": 0.5}, {"seeds": "walking"}, {"prompts": (Prompt(PROMPTS[0]), Prompt(PROMPTS[1], strength=0.3))},
]  # fmt: skip


def painted(nano, data, plain, config):
    """The second prompt as the trained adapters of ``plain`` paint it, without training again."""
    trainer = plain[0]
    previews = Previews(PreviewRequest(config, nano.vae), nano.model, data.embeds.embeds, trainer.adapters)
    previews.base = dict.fromkeys(range(2), torch.zeros(1))
    with torch.inference_mode(), borrow(nano.model, trainer.adapters.deltas()) as borrowed:
        (event,) = previews_of(previews.paint(borrowed, 3, nullcontext, 0))
    return event.pictures[1].painted


@pytest.mark.long
def test_every_setting_acts(nano, data, plain):
    """On the second prompt, whose seed walking changes. One step and no true guidance, which takes a quarter."""
    quick = replace(CONFIG, steps=1, guidance=1.0)
    seen = [painted(nano, data, plain, quick)]
    for change in SETTINGS:
        after = painted(nano, data, plain, replace(quick, **change))
        assert not any(torch.equal(after, before) for before in seen), change
        seen.append(after)


@pytest.mark.long
def test_walking_seeds_are_those_of_the_sampler(nano, plain, data, tmp_path):
    """The second prompt has the next seed; the seed after the largest one is 0."""
    config = replace(ONE, prompts=END.prompts, seeds="walking", seed=2**64 - 1)
    trainer, received = start(nano, data, previews=PreviewRequest(config, nano.vae))
    model = with_lora(nano.model, trainer, tmp_path)
    seeds = [config.seed, 0]
    for prompt, picture, seed in zip(PROMPTS, previews_of(received)[-1].pictures, seeds, strict=True):
        assert torch.equal(picture.painted, sampled(nano, model, prompt, replace(config, seeds="fixed", seed=seed)))
        assert picture.asked["seed"] == seed


@pytest.mark.long
def test_a_distilled_second_model_paints_with_its_own_steps_and_without_guidance(nano, data, tmp_path):
    """Only the variant makes the difference: the same weights, said to be distilled."""
    distilled = nano.model.clone()
    distilled.set_attachments(identify.VARIANT, DISTILLED)
    config = replace(ONE, steps=0, negative="blurry")
    trainer, received = start(nano, data, previews=PreviewRequest(config, nano.vae, distilled))
    (picture,) = previews_of(received)[-1].pictures
    model = with_lora(nano.model, trainer, tmp_path)
    steps = FLAVOURS["nano"].steps[DISTILLED]
    assert picture.asked["steps"] == steps != FLAVOURS["nano"].steps[BASE]
    # guidance 1 of a base model is one prediction, as a distilled model always makes it
    assert torch.equal(picture.painted, sampled(nano, model, PROMPTS[0], replace(config, steps=steps, guidance=1.0)))
    assert not [e for e in received if isinstance(e, events.Warned)]  # what is trained on is not distilled


def test_when_previews_are_due():
    def steps(**changes):
        return [step for step in range(8) if replace(CONFIG, **changes).is_due(step, 7)]

    assert steps(every=2) == [0, 2, 4, 6, 7]
    assert steps(every=0) == [0, 7] and steps(every=3, at_start=False) == [3, 6, 7]


@pytest.mark.long
def test_strength_and_negative_are_those_of_lora_apply_and_the_sampler(nano, data, tmp_path):
    config = replace(ONE, negative="blurry", strength=0.5)
    trainer, received = start(nano, data, previews=PreviewRequest(config, nano.vae))
    model = with_lora(nano.model, trainer, tmp_path, strength=0.5)
    assert torch.equal(previews_of(received)[-1].pictures[0].painted, sampled(nano, model, PROMPTS[0], config))


@pytest.mark.long
@pytest.mark.parametrize("method", choices(GuidanceSettings, "references"))
def test_references_reach_their_own_prompt(nano, data, plain, tmp_path, method):
    image = torch.rand(1, 32, 48, 3, generator=torch.Generator().manual_seed(0))
    shown = PreviewRequest(END, nano.vae, references=((), (image,)))
    trainer, received = start(nano, data, replace(SHORT, guidance=GuidanceSettings(references=method)), shown)
    first, second = previews_of(received)[-1].pictures
    model = with_lora(nano.model, trainer, tmp_path)
    assert torch.equal(second.painted, sampled(nano, model, PROMPTS[1], references=[image]))
    assert torch.equal(first.painted, previews_of(plain[1])[-1].pictures[0].painted)


@pytest.mark.long
@pytest.mark.parametrize("kind", [{"kind": "lokr"}, {"dora": True}], ids=["lokr", "dora"])
def test_other_adapters_are_painted_as_lora_apply_paints_them(nano, data, tmp_path, kind):
    """Not bit for bit: the file holds the product of factors and scale that the live adapter applies one by one.

    Each of a Linear's outputs then differs by a few roundings of fp32, 2**-24 of its size; two steps of 28 layers, each
    growing what came before by less than ten, stay below 1e-4 of a picture in 0..1.
    """
    config = replace(SHORT, adapter=AdapterSettings(**kind), learning_rate=2e-3)
    trainer, received = start(nano, data, config, PreviewRequest(ONE, nano.vae))
    expected = sampled(nano, with_lora(nano.model, trainer, tmp_path), PROMPTS[0])
    assert (previews_of(received)[-1].pictures[0].painted - expected).abs().max() < 1e-4


@pytest.mark.long
def test_out_of_memory_ends_previews_and_not_the_run(nano, another_nano, data, plain):
    """As a card says it, in the third sampling: the base of both prompts is painted by then."""
    calls = []

    def full(executor, *args, **kwargs):
        calls.append(1)
        if len(calls) == 5:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return executor(*args, **kwargs)

    second = another_nano.model.clone()
    second.add_wrapper(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, full)
    trainer, received = start(nano, data, previews=PreviewRequest(CONFIG, nano.vae, second))
    (warning,) = [e.text for e in received if isinstance(e, events.Warned)]
    assert "Memory ran out while painting previews of 64x48 after 0 steps" in warning
    assert not previews_of(received) and len(trainer.history.losses) == 2
    first = state_dict(plain[0].adapters, torch.float32)
    found = state_dict(trainer.adapters, torch.float32)
    assert all(torch.equal(found[name], first[name]) for name in first)


def test_another_failure_of_a_preview_is_no_secret(nano, another_nano, data):
    def broken(executor, *args, **kwargs):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    second = another_nano.model.clone()
    second.add_wrapper(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, broken)
    with pytest.raises(RuntimeError, match="mat1"):
        start(nano, data, previews=PreviewRequest(CONFIG, nano.vae, second))
    assert not [m for m in nano.model.model.modules() if "forward" in m.__dict__]


@pytest.mark.long
def test_cancelling_in_mid_sampling_gives_the_model_back(nano, data):
    trainer = new_trainer(nano.model, data.embeds, data.latents, SHORT, previews=PreviewRequest(CONFIG, nano.vae))
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException), closing(trainer.run()) as run:
            for event in run:
                if isinstance(event, events.Phase) and "preview 2" in event.text:
                    comfy.model_management.interrupt_current_processing(True)
    finally:
        comfy.model_management.interrupt_current_processing(False)
    assert trainer.adapters.strength == 1
    assert not [m for m in nano.model.model.modules() if "forward" in m.__dict__]


def test_what_cannot_be_painted_is_refused_before_the_first_step(nano, robot, data):
    with pytest.raises(UserError, match="wire Validation into Cache Embeds"):
        new_trainer(nano.model, robot.embeds, robot.latents, SHORT, previews=PreviewRequest(CONFIG, nano.vae))
    with pytest.raises(UserError, match="no sampler 'best'; euler"):
        unknown = PreviewRequest(replace(CONFIG, sampler="best"), nano.vae)
        new_trainer(nano.model, data.embeds, data.latents, SHORT, previews=unknown)
    with pytest.raises(UserError, match="second MODEL is FLUX.2 128/1/2/96, the trained one nano"):
        asked = PreviewRequest(CONFIG, nano.vae, tiny_flux2())
        new_trainer(nano.model, data.embeds, data.latents, SHORT, previews=asked)
    for change, words in (
        ({"prompts": ()}, "has 0 prompts"), ({"width": 100}, "multiples of 16"), ({"every": -1}, "every is -1"),
        ({"strength": 11.0}, "strength is 11"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            replace(CONFIG, **change)
