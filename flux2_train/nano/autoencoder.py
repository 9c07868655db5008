"""nano's autoencoder: a linear transform of 16 x 16 patches, with FLUX.2's latent shape and batch-norm statistics.

Its weights are principal components in closed form (``bench/nano/fit.py``).
"""

from __future__ import annotations

from torch import Tensor, nn

PATCH = 16
CHANNELS = 128


class PatchAutoencoder(nn.Module):
    """Pixels (B, 3, H, W) in [-1, 1] to latents (B, 128, H/16, W/16) and back; H and W multiples of 16."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Conv2d(3, CHANNELS, PATCH, PATCH, bias=False)
        self.decoder = nn.ConvTranspose2d(CHANNELS, 3, PATCH, PATCH, bias=False)
        self.bn = nn.BatchNorm2d(CHANNELS, eps=0.0, affine=False, track_running_stats=True)
        self.requires_grad_(False).eval()

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] to (B, 128, H/16, W/16)."""
        return (self.encoder(pixels) - _row(self.bn.running_mean)) / _row(self.bn.running_var).sqrt()

    def decode(self, latents: Tensor) -> Tensor:
        """(B, 128, h, w) to (B, 3, 16 h, 16 w), clipped to [-1, 1]."""
        return self.decoder(latents * _row(self.bn.running_var).sqrt() + _row(self.bn.running_mean)).clamp(-1, 1)


def _row(vector: Tensor) -> Tensor:
    return vector.view(1, -1, 1, 1)
