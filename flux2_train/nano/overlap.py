"""nano's autoencoder with a decoder whose patches overlap, so that an error of one latent cell makes no square.

Two convolutions on the latents see which parts a cell and its neighbours show. What they found and the linear picture
of ``PatchAutoencoder``, folded to a quarter of its sides, go through a few more, which add what is missing. Encoding is
the linear one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .autoencoder import CHANNELS, PatchAutoencoder

FOLD = 4  # pixels a side that become channels
SEEN, FEATURES = 96, 24  # channels that are computed from the latents, and those that each folded pixel gets
WIDTH, BLOCKS = 64, 2
STRENGTH = 0.1  # of what is added, which is small beside the linear picture


class Block(nn.Module):
    """(B, c, h, w) plus two convolutions of it."""

    def __init__(self, layers: object, channels: int):
        super().__init__()
        self.conv1 = layers.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = layers.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as ``x``."""
        return x + self.conv2(nn.functional.silu(self.conv1(nn.functional.silu(x))))


class OverlapAutoencoder(PatchAutoencoder):
    """As ``PatchAutoencoder``, with convolutions in its decoder; new ones change nothing."""

    def __init__(self, layers: object = nn):
        super().__init__(layers)
        folded = 3 * FOLD * FOLD
        self.refine_see = layers.Conv2d(CHANNELS, SEEN, 3, padding=1)
        self.refine_seen = Block(layers, SEEN)
        self.refine_tell = layers.Conv2d(SEEN, FEATURES * FOLD * FOLD, 1)
        self.refine_in = layers.Conv2d(folded + FEATURES, WIDTH, 3, padding=1)
        self.refine_blocks = nn.ModuleList(Block(layers, WIDTH) for _ in range(BLOCKS))
        self.refine_out = layers.Conv2d(WIDTH, folded, 3, padding=1)
        for parameter in self.refine_out.parameters():
            nn.init.zeros_(parameter)
        self.requires_grad_(False).eval()

    def decode(self, latents: Tensor) -> Tensor:
        """(B, 128, h, w) to (B, 3, 16 h, 16 w), clipped to [-1, 1]."""
        return self.refined(latents).clamp(-1, 1)

    def rough(self, latents: Tensor) -> Tensor:
        """The linear picture (B, 3, 16 h, 16 w), not clipped."""
        mean, deviation = self._statistics(latents)
        return self.decoder(latents * deviation + mean)

    def refined(self, latents: Tensor) -> Tensor:
        """The linear picture with what the convolutions add to it, not clipped."""
        rough = self.rough(latents)
        seen = self.refine_seen(self.refine_see(latents))
        features = nn.functional.pixel_shuffle(self.refine_tell(nn.functional.silu(seen)), FOLD)
        x = self.refine_in(torch.cat((nn.functional.pixel_unshuffle(rough, FOLD), features), 1))
        for block in self.refine_blocks:
            x = block(x)
        return rough + STRENGTH * nn.functional.pixel_shuffle(self.refine_out(nn.functional.silu(x)), FOLD)
