"""Training nano: text, velocity, optimizer, batches, the decoder with overlap, and the commands."""

import comfy.ops
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.nano import __main__ as commands
from bench.nano import data, decoder, flow, host, initial, install, optimizer, score, train
from bench.nano.autoencoder import PatchAutoencoder, fit
from bench.nano.strokes import strokes
from bench.nano.world import scenes, words
from bench.nano.world.scenes import Object, Spec
from flux2_train.flavours import FLAVOURS
from flux2_train.host.encoding.vae import load_vae
from flux2_train.nano import WEIGHTS
from flux2_train.nano.overlap import OverlapAutoencoder
from nodes import VAEDecode, VAEDecodeTiled, VAEEncode

CAPTION = "a red cat left of a blue house in the snow at night"


@pytest.fixture(scope="module")
def model():
    model = host.new_transformer()
    initial.initialise(model, seed=0)
    return model


@pytest.fixture(scope="module")
def linear():
    return train.linear_of(WEIGHTS)


@pytest.fixture
def work(tmp_path, linear):
    save_file(linear.state_dict(), tmp_path / "linear.safetensors")
    return tmp_path


def test_text_is_what_the_flavours_clip_gives(shipped_nano):
    with torch.inference_mode():
        official = shipped_nano.clip.encode_from_tokens(shipped_nano.clip.tokenize(CAPTION))
    text = flow.text([CAPTION, ""])
    assert text.embeds.shape[:2] == (2, 64) and torch.equal(text.positions[0], torch.arange(64.0))
    torch.testing.assert_close(text.embeds[:1], official)


@pytest.mark.parametrize("edit", [False, True])
def test_velocity_is_comfyuis_own(model, edit):
    generator = torch.Generator().manual_seed(3)
    x, ref = torch.randn(2, 2, 128, 4, 6, generator=generator)
    text, t = flow.text([CAPTION, ""]), torch.tensor([0.3, 0.9])
    with torch.no_grad():
        official = model(x, t, text.embeds, ref_latents=[ref] if edit else None)
        ours = flow.velocity(model, x, t, text, ref if edit else None)
    torch.testing.assert_close(ours, official, atol=1e-4, rtol=1e-4)


def test_gradients_are_right(model):
    generator = torch.Generator().manual_seed(4)
    x, t = torch.randn(1, 128, 2, 2, generator=generator), torch.tensor([0.5])
    text = flow.text([CAPTION])
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
        v = flow.velocity(model, noise, torch.ones(2), flow.text(["", ""]))
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


def test_a_batch_depends_on_its_step_alone(linear):
    first, other, again = (data.batch(0, step, linear) for step in (5, 6, 5))
    assert first.captions == again.captions != other.captions and torch.equal(first.latents, again.latents)


@pytest.mark.long
def test_every_shape_and_edits_have_their_share(linear):
    batches = [data.batch(1, step, linear) for step in range(40)]
    shapes = [tuple(b.latents.shape[2:]) for b in batches if b.reference is None]
    assert {shapes.count(shape) > 5 for shape in ((8, 8), (6, 10), (10, 6))} == {True} and len(shapes) < 40


def test_new_convolutions_change_nothing(linear):
    model = OverlapAutoencoder()
    model.load_state_dict(linear.state_dict(), strict=False)
    latents = torch.randn(2, 128, 4, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.decode(latents), linear.decode(latents))


def test_the_decoder_sees_over_the_edges_of_cells(linear):
    model = OverlapAutoencoder(comfy.ops.disable_weight_init)
    decoder.begin(model, 0)
    model.load_state_dict(linear.state_dict(), strict=False)
    torch.nn.init.normal_(model.refine_out.weight, std=0.1)
    first = 0.1 * torch.randn(1, 128, 5, 5, generator=torch.Generator().manual_seed(0))
    second = first.clone()
    second[..., 2, 2] += 0.2
    changed = (model.decode(first) != model.decode(second))[0].any(0)
    assert changed[28:52, 28:52].float().mean() > 0.9 and changed[20:60, 20:60].float().mean() > 0.5


@pytest.mark.long
def test_installed_it_is_a_vae_for_every_node(work, linear, comfy_folders):
    model = OverlapAutoencoder()
    decoder.begin(model, 0)
    torch.nn.init.normal_(model.refine_out.weight, std=0.02)
    model.load_state_dict(linear.state_dict(), strict=False)
    save_file(model.state_dict(), work / "vae.safetensors")
    save_file({"average.a_norm.weight": torch.zeros(1)}, work / "checkpoint.safetensors")
    (work / "out").mkdir()
    install.install(work, work / "out")
    assert (work / "out" / "vae.safetensors").stat().st_size < 2e6
    assert train.trained(work / "out").keys() == train.trained(work).keys()  # ``trained`` also reads installed weights
    with torch.inference_mode():
        vae = load_vae(work / "out" / "vae.safetensors", FLAVOURS["nano"])
        picture = torch.from_numpy(scenes.draw(Spec("one", (Object("cat", "red"),), "left", "day", "snow"), (160, 96)))
        latents = VAEEncode().encode(vae, picture[None])[0]
        painted = VAEDecode().decode(vae, latents)[0]
        tiled = VAEDecodeTiled().decode(vae, latents, 96, 32)[0]
        expected = model.decode(latents["samples"]).movedim(1, -1) / 2 + 0.5
    assert latents["samples"].shape == (1, 128, 6, 10) and tiled.shape == painted.shape == (1, 96, 160, 3)
    torch.testing.assert_close(painted, expected, atol=2e-3, rtol=0)
    assert (tiled - painted).abs().mean() < 5e-3


@pytest.mark.long
def test_errors_are_those_of_sampling(linear):
    model, generator = OverlapAutoencoder(), torch.Generator().manual_seed(0)
    model.load_state_dict(linear.state_dict(), strict=False)
    latents = torch.randn(40, 128, 4, 4, generator=generator)
    change = (decoder.noisy(latents, generator) - latents).std((1, 2, 3))
    assert 0.1 < (change == 0).float().mean() < 0.4 and 0.2 < change.max() < 1.1 * decoder.NOISE
    transformer = host.new_transformer()
    initial.initialise(transformer, 0)
    taken = decoder.sampled(transformer, latents[:2], ["a red cat", "a blue owl"], 0.1, generator)
    assert 0.01 < (taken - latents[:2]).std() < 0.3


@pytest.mark.long
def test_the_decoder_learns_and_goes_on(work, monkeypatch, capsys):
    """From a linear part that has never seen a scene, so that there is much to add in few steps."""
    save_file(fit([data.to_pixels(strokes(40, seed=0))]).state_dict(), work / "linear.safetensors")
    monkeypatch.setattr(decoder, "BATCH", 2)
    monkeypatch.setattr(decoder, "noisy", lambda latents, generator: latents)
    decoder.train_decoder(4, work)
    once = load_file(work / "vae.safetensors")
    commands.main(["--threads", "1", "decoder", "--work", str(work), "--steps", "20"])
    before, after = PatchAutoencoder(), score.autoencoder_of(work)
    before.load_state_dict(load_file(work / "linear.safetensors"))
    assert score.reconstruction(after, scenes.SIZES[0], 6) > score.reconstruction(before, scenes.SIZES[0], 6)
    assert not torch.equal(once["refine_in.weight"], load_file(work / "vae.safetensors")["refine_in.weight"])
    assert torch.equal(once["encoder.weight"], load_file(work / "linear.safetensors")["encoder.weight"])


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_nothing_had_happened_and_paints(work, linear, monkeypatch, capsys):
    monkeypatch.setattr(data, "BATCH", 2)
    monkeypatch.setattr(data, "EDITS", 2)
    monkeypatch.setattr(train, "rate_factor", lambda step, steps: 1.0)
    (work / "parts").mkdir()
    save_file(linear.state_dict(), work / "parts" / "linear.safetensors")
    for steps, folder in ((3, work), (1, work / "parts"), (3, work / "parts")):
        commands.main(["--threads", "1", "train", "--work", str(folder), "--steps", str(steps)])
    whole, parts = (load_file(folder / "checkpoint.safetensors") for folder in (work, work / "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    weights = load_file(work / "transformer.safetensors")
    assert weights["img_in.weight"].dtype == torch.bfloat16 and any(name.endswith("_norm.scale") for name in weights)
    commands.main(["sheet", "--weights", str(work), str(work / "a.png"), "--count", "1", "--steps", "1"])
    assert (work / "a.png").exists()
    save_file(OverlapAutoencoder().state_dict(), work / "vae.safetensors")
    commands.main(["install", "--work", str(work), str(work / "parts")])
    installed = load_file(work / "parts" / "transformer.safetensors")
    assert all(torch.equal(installed[name], weights[name]) for name in weights)
    (work / "vae.safetensors").unlink()
    commands.main(["score", "--weights", str(work), "--prompts", "1", "--steps", "1"])
    assert capsys.readouterr().out.count("likeness") == 4


@pytest.mark.long
def test_the_tally_of_exact_renders_is_whole():
    specs = [Spec("one", (Object("owl", "green"),), "right", "sunset", "beach")]
    tally, likeness = score.compared(specs, [scenes.draw(specs[0], scenes.SIZES[2])])
    assert tally.share() == 1 and likeness == pytest.approx(1)
    tally, likeness = score.compared(specs, [np.full((160, 96, 3), 0.5, np.float32)])
    assert tally.share() < 0.5 and likeness < 0.9
    assert words.caption(specs[0]) == "a green owl at the right on a beach at sunset"
