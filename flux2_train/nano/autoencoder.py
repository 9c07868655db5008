"""nano's autoencoder: a linear transform of 16 x 16 patches, with FLUX.2's latent shape and batch-norm statistics.

Its weights are principal components in closed form (``bench/nano/fit.py``).
"""

from __future__ import annotations

from torch import Tensor, nn

PATCH = 16
CHANNELS = 128


class PatchAutoencoder(nn.Module):
    """Pixels (B, 3, H, W) in [-1, 1] to latents (B, 128, H/16, W/16) and back; H and W multiples of 16.

    ``layers`` is the module that has Conv2d and so on: ``torch.nn``, or one of ``comfy.ops``, whose weights may lie on
    another device.
    """

    def __init__(self, layers: object = nn):
        super().__init__()
        self.encoder = layers.Conv2d(3, CHANNELS, PATCH, PATCH, bias=False)
        self.decoder = layers.ConvTranspose2d(CHANNELS, 3, PATCH, PATCH, bias=False)
        self.bn = nn.BatchNorm2d(CHANNELS, eps=0.0, affine=False, track_running_stats=True)
        self.requires_grad_(False).eval()

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] to (B, 128, H/16, W/16)."""
        mean, deviation = self._statistics(pixels)
        return (self.encoder(pixels) - mean) / deviation

    def decode(self, latents: Tensor) -> Tensor:
        """(B, 128, h, w) to (B, 3, 16 h, 16 w), clipped to [-1, 1]."""
        mean, deviation = self._statistics(latents)
        return self.decoder(latents * deviation + mean).clamp(-1, 1)

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (1, 128, 1, 1) on a tensor's device."""
        mean, variance = (x.to(like.device).view(1, -1, 1, 1) for x in (self.bn.running_mean, self.bn.running_var))
        return mean, variance.sqrt()
