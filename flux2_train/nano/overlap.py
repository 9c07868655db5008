"""nano's autoencoder with a decoder whose patches overlap, so that an error of one latent cell makes no square.

The linear picture of ``PatchAutoencoder`` is folded to a quarter of its sides; a few convolutions look at about 30
pixels around each cell of 4 x 4 and add what is missing. Encoding is the linear one.
"""

from __future__ import annotations

from torch import Tensor, nn

from .autoencoder import PatchAutoencoder

FOLD = 4  # pixels a side that become channels
WIDTH, BLOCKS = 64, 3


class Block(nn.Module):
    """(B, WIDTH, h, w) plus two convolutions of it."""

    def __init__(self, layers: object):
        super().__init__()
        self.conv1 = layers.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.conv2 = layers.Conv2d(WIDTH, WIDTH, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as ``x``."""
        return x + self.conv2(nn.functional.silu(self.conv1(nn.functional.silu(x))))


class OverlapAutoencoder(PatchAutoencoder):
    """As ``PatchAutoencoder``, with convolutions after its decoder; new ones change nothing."""

    def __init__(self, layers: object = nn):
        super().__init__(layers)
        channels = 3 * FOLD * FOLD
        self.refine_in = layers.Conv2d(channels, WIDTH, 3, padding=1)
        self.refine_blocks = nn.ModuleList(Block(layers) for _ in range(BLOCKS))
        self.refine_out = layers.Conv2d(WIDTH, channels, 3, padding=1)
        for parameter in self.refine_out.parameters():
            nn.init.zeros_(parameter)
        self.requires_grad_(False).eval()

    def decode(self, latents: Tensor) -> Tensor:
        """(B, 128, h, w) to (B, 3, 16 h, 16 w), clipped to [-1, 1]."""
        return self.refined(self.rough(latents)).clamp(-1, 1)

    def rough(self, latents: Tensor) -> Tensor:
        """The linear picture (B, 3, 16 h, 16 w), not clipped."""
        mean, deviation = self._statistics(latents)
        return self.decoder(latents * deviation + mean)

    def refined(self, rough: Tensor) -> Tensor:
        """The linear picture with what the convolutions add to it."""
        x = self.refine_in(nn.functional.pixel_unshuffle(rough, FOLD))
        for block in self.refine_blocks:
            x = block(x)
        return rough + nn.functional.pixel_shuffle(self.refine_out(nn.functional.silu(x)), FOLD)
