"""How captions and images are encoded and where that is kept: the nodes Cache Embeds and Cache Latents."""

from __future__ import annotations

from typing import Literal

from .base import RARE, Settings, setting, settings
from .memory import AUTO, Offload

USER, OUTPUT = "user folder", "output folder"
AS_LOADED = "as loaded"
STORE = "Where the cache lies on disk: in ComfyUI's user folder or in its output folder."
LIMIT = (
    "Keep the cache below this many gigabytes by removing what other data sets have not used for the longest time; 0 "
    "is no limit."
)


@settings
class EmbedSettings(Settings):
    """How captions are encoded. ``prompts`` are more texts, one per line."""

    batch: int = setting(
        1, "How many captions of equal length are encoded at a time; more is faster on large cards.",
        ge=1, le=256, **RARE,
    )  # fmt: skip
    prompts: str = setting(
        "", "More texts to encode, one per line, such as prompts and negatives of previews.", multiline=True, **RARE
    )
    store: Literal["user folder", "output folder"] = setting(USER, STORE, **RARE)
    limit_gb: float = setting(0.0, LIMIT, ge=0, le=100_000, step=1, **RARE)
    offload: Offload = setting(
        AUTO,
        "Whether the text encoder's layers stay in host memory and come to the card one after the other: 'auto' where "
        "it does not fit, 'all' always, 'off' never (ComfyUI then loads what fits). The embeds are the same.",
        **RARE,
    )

    @property
    def texts(self) -> list[str]:
        """The lines of ``prompts`` that hold something."""
        return [line.strip() for line in self.prompts.splitlines() if line.strip()]


@settings
class LatentSettings(Settings):
    """How images are encoded."""

    batch: int = setting(
        1, "How many images of one size are encoded at a time; more is faster on large cards.", ge=1, le=256, **RARE
    )
    vae_precision: Literal["as loaded", "fp32", "bf16"] = setting(
        AS_LOADED,
        "Precision the images are encoded in: as ComfyUI loaded the VAE (bf16 on most cards), or another one. fp32 is "
        "the most exact.",
        **RARE,
    )
    tile: int = setting(
        0,
        "Encode in tiles of this many pixels, which needs little memory and is slightly less exact. 0 encodes whole "
        "images.",
        ge=0, le=4096, step=64, **RARE,
    )  # fmt: skip
    store: Literal["user folder", "output folder"] = setting(USER, STORE, **RARE)
    limit_gb: float = setting(0.0, LIMIT, ge=0, le=100_000, step=1, **RARE)
