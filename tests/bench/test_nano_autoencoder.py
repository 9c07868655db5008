import pytest
import torch

from bench.nano import fit
from bench.nano.autoencoder import PatchAutoencoder, psnr
from bench.nano.autoencoder import fit as fit_pictures
from bench.nano.data import to_pictures, to_pixels
from bench.nano.score import autoencoder_of, reconstruction
from bench.nano.strokes import strokes
from bench.nano.world import scenes


@pytest.mark.parametrize("size", scenes.SIZES)
def test_scenes_survive(size):
    pixels = to_pixels(fit.scene_pictures(30, size, seed=99))
    autoencoder = autoencoder_of()
    latents = autoencoder.encode(pixels)
    assert latents.shape == (30, 128, size[1] // 16, size[0] // 16)
    assert 0.5 < latents.pow(2).mean() < 1.25  # small objects, in the wide and tall sizes, are quieter
    assert reconstruction(autoencoder, size, 100) > 35  # dB, as the model card says


def test_manners_that_scenes_lack_survive():
    pixels = to_pixels(strokes(30, seed=98))
    autoencoder = autoencoder_of()
    assert psnr(pixels, autoencoder.decode(autoencoder.encode(pixels))) > 30


def test_latents_are_independent_and_decoding_inverts_encoding():
    pixels = to_pixels(fit.scene_pictures(120, scenes.SIZES[0], seed=1))
    autoencoder = fit_pictures([pixels])
    latents = autoencoder.encode(pixels)
    flat = latents.transpose(0, 1).flatten(1)
    correlation = torch.corrcoef(flat)
    assert (correlation - torch.eye(128)).abs().max() < 0.05
    decoded = autoencoder.decoder(
        latents * autoencoder.bn.running_var.sqrt().view(1, -1, 1, 1) + autoencoder.bn.running_mean.view(1, -1, 1, 1)
    )
    torch.testing.assert_close(autoencoder.encode(decoded), latents, atol=1e-3, rtol=1e-3)


def test_pictures_and_pixels_convert_back():
    pictures = fit.scene_pictures(2, scenes.SIZES[2], seed=3)
    for there, back in zip(pictures, to_pictures(to_pixels(pictures)), strict=True):
        assert abs(there - back).max() < 1e-6


def test_state_has_the_names_that_loaders_know():
    names = set(PatchAutoencoder().state_dict())
    assert {"bn.running_mean", "bn.running_var", "encoder.weight", "decoder.weight"} <= names
