"""The sampler's rules per flavour, and agreement with a graph of stock nodes."""

import comfy_extras.nodes_custom_sampler as custom
import comfy_extras.nodes_flux as flux
import pytest
import torch
from comfy_extras.nodes_edit_model import ReferenceLatent
from support import sdxl, tiny_flux2

import nodes as core
from flux2_train.errors import UserError
from flux2_train.flavours import FLAVOURS
from flux2_train.host import identify
from flux2_train.host.sampling import sample as sampling


def stock_graph(nano, prompt, cfg, steps, references=()):
    """The official klein base graph: CFGGuider, empty negative, Flux2Scheduler, ReferenceLatent on both sides."""
    positive, negative = (core.CLIPTextEncode().encode(nano.clip, text)[0] for text in (prompt, ""))
    for image in references:
        latent = core.VAEEncode().encode(nano.vae, image)[0]
        positive, negative = (ReferenceLatent.execute(c, latent)[0] for c in (positive, negative))
    guider = custom.CFGGuider.execute(nano.model, positive, negative, cfg)[0]
    sigmas = flux.Flux2Scheduler.execute(steps, 64, 48)[0]
    latent = flux.EmptyFlux2LatentImage.execute(64, 48, 1)[0]
    noise = custom.RandomNoise.execute(5)[0]
    sampler = custom.KSamplerSelect.execute("euler")[0]
    done = custom.SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent)[0]
    return core.VAEDecode().decode(nano.vae, done)[0]


@pytest.mark.long
@pytest.mark.parametrize("count, guidance", [(0, 0.0), (0, 3.0), (2, 3.0)])
def test_same_picture_as_the_official_graph(nano, count, guidance):
    references = [torch.rand(1, 32, 48, 3, generator=torch.Generator().manual_seed(i)) for i in range(count)]
    with torch.inference_mode():
        expected = stock_graph(nano, "a robot", guidance or FLAVOURS["nano"].guidance, 3, references)
    found = sampling.sample(nano.model, nano.clip, nano.vae, "a robot", steps=3, width=64, height=48, seed=5,
                            guidance=guidance, references=references)  # fmt: skip
    assert torch.equal(found, expected)


@pytest.mark.long
def test_references_and_negative_act(nano):
    def paint(**kwargs):
        return sampling.sample(nano.model, nano.clip, nano.vae, "a robot", steps=2, width=64, height=48, **kwargs)

    plain = paint()
    assert not torch.equal(plain, paint(references=[torch.rand(1, 32, 32, 3)]))
    guided = paint(guidance=4.0)
    assert not torch.equal(plain, guided)
    assert not torch.equal(guided, paint(guidance=4.0, negative="blue"))
    assert paint(batch=2).shape[0] == 2


def as_if(model, sizes, variant, monkeypatch):
    clone = model.clone()
    clone.set_attachments(identify.VARIANT, variant)
    monkeypatch.setattr(identify, "sizes", lambda _: sizes)
    return clone


def test_guidance_and_steps_per_flavour(nano, monkeypatch):
    assert sampling.guidance_for(nano.model, 0.0) == sampling.Guidance(1.0, 1.0)
    base = as_if(nano.model, FLAVOURS["klein-9b"].sizes, "base", monkeypatch)
    assert sampling.guidance_for(base, 0.0) == sampling.Guidance(4.0, 4.0) and sampling.steps_for(base, 0) == 20
    distilled = as_if(nano.model, FLAVOURS["klein-9b"].sizes, "distilled", monkeypatch)
    assert sampling.guidance_for(distilled, 5.0).cfg == 1.0 and sampling.steps_for(distilled, 0) == 4
    dev = as_if(tiny_flux2(guidance=True), FLAVOURS["dev"].sizes, "base", monkeypatch)
    assert sampling.guidance_for(dev, 3.0) == sampling.Guidance(3.0, 1.0)
    assert sampling.steps_for(dev, 7) == 7


@pytest.mark.long
def test_distilled_runs_the_model_once_per_step(nano, monkeypatch):
    calls = []
    forward = type(nano.model.model).apply_model
    monkeypatch.setattr(
        type(nano.model.model), "apply_model", lambda s, x, *a, **k: (calls.append(len(x)), forward(s, x, *a, **k))[1]
    )
    for variant, rows in (("base", 2), ("distilled", 1)):
        calls.clear()
        model = nano.model.clone()
        model.set_attachments(identify.VARIANT, variant)
        sampling.sample(model, nano.clip, nano.vae, "a robot", steps=2, width=64, height=48, guidance=2.0)
        assert sum(calls) == 2 * rows


def test_schedule_is_bfls_empirical_mu():
    # mu 2.02 at 50 steps and 4096 tokens (section 4.7 of BFL's table), t' = e^mu t / (1 + (e^mu - 1) t)
    values = sampling.sigmas(50, 1024, 1024)
    assert values[0] == 1 and values[-1] == 0 and len(values) == 51
    factor = torch.tensor(2.0216).exp()
    assert values[25].item() == pytest.approx((factor * 0.5 / (1 + (factor - 1) * 0.5)).item(), abs=1e-3)


def test_bad_inputs_are_one_sentence(nano):
    with pytest.raises(UserError, match="needs a FLUX.2 model"):
        sampling.sample(sdxl(), nano.clip, nano.vae, "x")
    with pytest.raises(UserError, match="The size is 100x64"):
        sampling.sample(nano.model, nano.clip, nano.vae, "x", width=100, height=64)
    with pytest.raises(UserError, match="gives 384 numbers per token but this MODEL reads 96"):
        sampling.sample(tiny_flux2(), nano.clip, nano.vae, "x", width=64, height=64)
    with pytest.raises(UserError, match="A reference image is 8x8"):
        sampling.sample(nano.model, nano.clip, nano.vae, "x", width=64, height=64, references=[torch.rand(1, 8, 8, 3)])


def test_large_references_shrink_unless_told_otherwise(nano, monkeypatch):
    shapes = []
    monkeypatch.setattr(sampling, "REFERENCE_PIXELS", 64 * 64)
    encode = nano.vae.encode
    monkeypatch.setattr(nano.vae, "encode", lambda image: (shapes.append(tuple(image.shape[1:3])), encode(image))[1])
    with torch.inference_mode():
        for resize in (True, False):
            sampling.encode_references(nano.vae, [torch.rand(1, 128, 96, 3)], resize)
    assert shapes == [(64, 48), (128, 96)]
