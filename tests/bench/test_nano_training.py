import pytest
import torch
from safetensors.torch import load_file

from bench.nano import data, fit, flow, host, initial, optimizer, train

CAPTION = "a red circle left of a blue square on a striped white background"


@pytest.fixture(scope="module")
def model():
    model = host.new_transformer()
    initial.initialise(model, seed=0)
    return model


def test_text_is_what_comfyui_gives():
    clip = host.text_encoder()
    official = clip.encode_from_tokens(clip.tokenize(CAPTION))
    assert torch.equal(flow.full_text([CAPTION]).embeds, official)
    short = flow.short_text([CAPTION, ""], torch.Generator().manual_seed(0))
    torch.testing.assert_close(short.embeds[0], official[0, short.positions[0].long()])


def test_sampled_padding_stands_for_all_of_it(model):
    x, t = torch.randn(1, 128, 4, 4, generator=torch.Generator().manual_seed(1)), torch.tensor([0.7])
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        full = flow.velocity(model, x, t, flow.full_text([CAPTION]))
        text = flow.short_text([CAPTION], generator, fillers=48)
        weighted = flow.velocity(model, x, t, text)
        text.bias = None
        plain = flow.velocity(model, x, t, text)
    assert (weighted - full).norm() < 0.04 * full.norm() < (plain - full).norm()


@pytest.mark.parametrize("edit", [False, True])
def test_velocity_is_comfyuis_own(model, edit):
    generator = torch.Generator().manual_seed(3)
    x, ref = torch.randn(2, 2, 128, 4, 6, generator=generator)
    text, t = flow.full_text([CAPTION, ""]), torch.tensor([0.3, 0.9])
    with torch.no_grad():
        official = model(x, t, text.embeds, ref_latents=[ref] if edit else None)
        ours = flow.velocity(model, x, t, text, ref if edit else None)
    torch.testing.assert_close(ours, official, atol=1e-4, rtol=1e-4)


def test_gradients_are_right(model):
    generator = torch.Generator().manual_seed(4)
    x, t = torch.randn(1, 128, 2, 2, generator=generator), torch.tensor([0.5])
    text = flow.short_text(["a red circle"], generator)
    weight = model.single_blocks[0].linear1.weight
    direction = torch.randn(weight.shape, generator=generator)
    with host.training():
        flow.velocity(model, x, t, text).pow(2).mean().backward()
    slope, values = (weight.grad * direction).sum().item(), []
    model.zero_grad()
    with torch.no_grad():
        for sign in (1, -1):
            weight.add_(direction, alpha=sign * 1e-3)
            values.append(flow.velocity(model, x, t, text).pow(2).mean().item())
            weight.sub_(direction, alpha=sign * 1e-3)
    assert slope == pytest.approx((values[0] - values[1]) / 2e-3, rel=0.03)


def test_the_first_step_already_copies_the_noise(model):
    noise = torch.randn(2, 128, 4, 4, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        v = flow.velocity(model, noise, torch.ones(2), flow.full_text(["", ""]))
    assert torch.cosine_similarity(v.flatten(), noise.flatten(), 0) > 0.5


@pytest.mark.parametrize("shape", [(64, 256), (256, 64)])
def test_muon_takes_orthogonal_steps(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(6))
    values = torch.linalg.svdvals(optimizer.orthogonalise(matrix))
    assert values.min() > 0.6 and values.max() < 1.3
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    assert torch.cosine_similarity(optimizer.orthogonalise(matrix).flatten(), (u @ vh).flatten(), 0) > 0.98


def test_the_rate_warms_up_holds_and_cools_down():
    assert train.rate_factor(0, 1000) == 1 / train.WARM_UP
    assert train.rate_factor(train.WARM_UP, 1000) == train.rate_factor(290, 1000) == 1
    assert 0 < train.rate_factor(999, 1000) < 0.01


def test_a_batch_depends_on_its_step_alone():
    autoencoder = fit.load_autoencoder()
    batches = [data.batch(0, step, autoencoder) for step in (5, 6, 5)]
    assert batches[0].captions == batches[2].captions != batches[1].captions
    assert torch.equal(batches[0].latents, batches[2].latents)


@pytest.mark.long
def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "DIT", tmp_path / "out.safetensors")
    monkeypatch.setattr(data, "BATCH", 3)
    monkeypatch.setattr(train, "rate_factor", lambda step, steps: 1.0)
    for steps, work in ((3, "whole"), (1, "parts"), (3, "parts")):
        train.train(steps, work=tmp_path / work)
        exported = load_file(tmp_path / "out.safetensors")
    whole, parts = (load_file(tmp_path / work / "checkpoint.safetensors") for work in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert exported["img_in.weight"].dtype == torch.bfloat16 and "final_layer.linear.weight" in exported
    train.train(0, work=tmp_path / "from", weights=tmp_path / "out.safetensors")
    again = load_file(tmp_path / "out.safetensors")
    assert all(torch.equal(exported[name], again[name]) for name in exported)
