"""nano's autoencoder in closed form: principal components of 16 x 16 patches, 128 of 768, partly whitened.

Full whitening would give the faintest detail the weight of colour; none would leave the detail below the noise until
the very last step. Dividing by variance^(WHITENING / 2) lies between, and one common factor makes the mean square of
all latents 1.
"""

import torch
from torch import nn

from flux2_train.nano.autoencoder import CHANNELS, PATCH, PatchAutoencoder

WHITENING = 0.5


def fit(pixels: list[torch.Tensor]) -> PatchAutoencoder:
    """The autoencoder of pictures (B, 3, H, W) in [-1, 1], by an eigendecomposition in float64."""
    patches = torch.cat([_patches(p) for p in pixels]).double()
    mean = patches.mean(0)
    centred = patches - mean
    variance, vectors = torch.linalg.eigh(centred.T @ centred / len(patches))
    variance, vectors = variance.flip(0)[:CHANNELS].clamp(min=1e-8), vectors.flip(1)[:, :CHANNELS]
    vectors = vectors * vectors.sum(0).sign()  # eigenvectors have no sign of their own
    spread = variance**WHITENING
    spread = spread * (variance / spread).mean()
    model = PatchAutoencoder()
    basis = vectors.T.reshape(CHANNELS, 3, PATCH, PATCH).float()
    model.encoder.weight.copy_(basis)
    model.decoder.weight.copy_(basis)
    # What lies outside the components is taken to be the mean's: it is lost, and the mean itself keeps 98 % and more.
    model.bn.running_mean.copy_(mean @ vectors)
    model.bn.running_var.copy_(spread)
    return model


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB of two pictures in [-1, 1]."""
    return float(10 * torch.log10(4 / (a - b).pow(2).mean()))


def _patches(pixels: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) to (B H/16 W/16, 768), in the order of a convolution weight."""
    return nn.functional.unfold(pixels, PATCH, stride=PATCH).transpose(1, 2).reshape(-1, 3 * PATCH * PATCH)
