"""Training nano on its new world, the decoder with overlap, and the commands."""

from dataclasses import replace

import comfy.ops
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.nano import fit, flow, host, initial
from bench.nano.autoencoder import PatchAutoencoder
from bench.nano.world import __main__ as commands
from bench.nano.world import data, decoder, install, scenes, score, train, words
from bench.nano.world.scenes import Object, Spec
from flux2_train.flavours import FLAVOURS
from flux2_train.host.encoding.vae import load_vae
from flux2_train.nano.overlap import OverlapAutoencoder
from nodes import VAEDecode, VAEDecodeTiled, VAEEncode


@pytest.fixture(scope="module")
def linear():
    return fit.load_autoencoder()


@pytest.fixture
def work(tmp_path, linear):
    save_file(linear.state_dict(), tmp_path / "linear.safetensors")
    return tmp_path


def test_a_batch_depends_on_its_step_alone(linear):
    first, other, again = (data.batch(0, step, linear) for step in (5, 6, 5))
    assert first.captions == again.captions != other.captions and torch.equal(first.latents, again.latents)


@pytest.mark.long
def test_every_shape_and_edits_have_their_share(linear):
    batches = [data.batch(1, step, linear) for step in range(40)]
    shapes = [tuple(b.latents.shape[2:]) for b in batches if b.reference is None]
    assert {shapes.count(shape) > 5 for shape in ((8, 8), (6, 10), (10, 6))} == {True} and len(shapes) < 40


@pytest.mark.long
def test_text_is_padded_to_64_tokens_that_are_all_read():
    text = flow.full_text(["a red cat", ""], train.TEXT_LENGTH)
    assert text.embeds.shape[:2] == (2, 64) and text.bias is None
    assert torch.equal(text.positions[0], torch.arange(64.0))
    whole = flow.full_text(["a red cat", ""])
    torch.testing.assert_close(text.embeds, whole.embeds[:, :64])


@pytest.mark.long
def test_the_velocity_at_64_tokens_is_comfyuis_own():
    model, generator = host.new_transformer(), torch.Generator().manual_seed(3)
    initial.initialise(model, seed=0)
    x, reference = torch.randn(2, 1, 128, 4, 6, generator=generator)
    text, t = flow.full_text(["a red cat at the left"], train.TEXT_LENGTH), torch.tensor([0.6])
    with torch.no_grad():
        official = model(x, t, text.embeds, ref_latents=[reference])
        ours = flow.velocity(model, x, t, text, reference)
    torch.testing.assert_close(ours, official, atol=1e-4, rtol=1e-4)


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
    assert train.trained(work / "out").keys() == train.trained(work).keys()  # what is written is taken up again
    with torch.inference_mode():
        vae = load_vae(work / "out" / "vae.safetensors", replace(FLAVOURS["nano"], vae_module=OverlapAutoencoder))
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
    monkeypatch.setattr(decoder, "BATCH", 2)
    monkeypatch.setattr(decoder, "noisy", lambda latents, generator: latents)
    decoder.train_decoder(8, work)
    once = load_file(work / "vae.safetensors")
    commands.main(["--threads", "1", "--work", str(work), "decoder", "--steps", "40"])
    before, after = PatchAutoencoder(), score.autoencoder_of(work)
    before.load_state_dict(load_file(work / "linear.safetensors"))
    assert score.reconstruction(after, scenes.SIZES[0], 6) > score.reconstruction(before, scenes.SIZES[0], 6)
    assert not torch.equal(once["refine_in.weight"], load_file(work / "vae.safetensors")["refine_in.weight"])
    assert torch.equal(once["encoder.weight"], load_file(work / "linear.safetensors")["encoder.weight"])


@pytest.mark.long
def test_a_killed_run_goes_on_as_if_nothing_had_happened_and_paints(work, linear, monkeypatch, capsys):
    monkeypatch.setattr(data, "BATCH", 2)
    monkeypatch.setattr(data, "EDITS", 2)
    monkeypatch.setattr(train, "rate_factor", lambda step, steps: 1.0)
    (work / "parts").mkdir()
    save_file(linear.state_dict(), work / "parts" / "linear.safetensors")
    for steps, folder in ((3, work), (1, work / "parts"), (3, work / "parts")):
        commands.main(["--threads", "1", "--work", str(folder), "train", "--steps", str(steps)])
    whole, parts = (load_file(folder / "checkpoint.safetensors") for folder in (work, work / "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    weights = load_file(work / "transformer.safetensors")
    assert weights["img_in.weight"].dtype == torch.bfloat16 and any(name.endswith("_norm.scale") for name in weights)
    commands.main(["--threads", "1", "--work", str(work), "sheet", str(work / "a.png"), "--count", "1", "--steps", "1"])
    assert (work / "a.png").exists()
    save_file(OverlapAutoencoder().state_dict(), work / "vae.safetensors")
    commands.main(["--work", str(work), "install", str(work / "parts")])
    installed = load_file(work / "parts" / "transformer.safetensors")
    assert all(torch.equal(installed[name], weights[name]) for name in weights)
    (work / "vae.safetensors").unlink()
    commands.main(["--threads", "1", "--work", str(work), "score", "--prompts", "1", "--steps", "1"])
    assert capsys.readouterr().out.count("likeness") == 4


@pytest.mark.long
def test_the_tally_of_exact_renders_is_whole():
    specs = [Spec("one", (Object("owl", "green"),), "right", "sunset", "beach")]
    tally, likeness = score.compared(specs, [scenes.draw(specs[0], scenes.SIZES[2])])
    assert tally.share() == 1 and likeness == pytest.approx(1)
    tally, likeness = score.compared(specs, [np.full((160, 96, 3), 0.5, np.float32)])
    assert tally.share() < 0.5 and likeness < 0.9
    assert words.caption(specs[0]) == "a green owl at the right on a beach at sunset"
