"""`nano`: a FLUX.2 in small that comes with the pack, so that every job runs anywhere without a download.

Same classes and keys as the released flavours, only sizes differ. ``bench/nano`` trained it; its README says how, on
what, and where its limits are. The names of its files carry a version, so that new weights never meet old files.
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from . import textgen
from .autoencoder import PatchAutoencoder  # noqa: F401  part of the flavour, like the weights below

VERSION = 3
HIDDEN, DOUBLE_BLOCKS, SINGLE_BLOCKS = 256, 2, 6
CONTEXT = 3 * textgen.HIDDEN
RESOLUTION = 128
# It follows prompts without help; more would exaggerate what a LoRA has only half learned.
GUIDANCE = 2.0
TEXT_ENCODER_CONFIG = textgen.CONFIG
TRANSFORMER, TEXT_ENCODER, VAE = (
    f"flux2-nano-{VERSION}-{part}.safetensors" for part in ("transformer", "text-encoder", "vae")
)

WEIGHTS = Path(__file__).parent / "weights"


def transformer() -> dict[str, Tensor]:
    """The transformer's state dict, bf16, 9.9 M parameters."""
    return load_file(WEIGHTS / "transformer.safetensors")


def text_encoder() -> dict[str, Tensor]:
    """The text encoder's state dict, bf16, 24 M parameters, computed."""
    return textgen.generate_text_encoder()


def vae() -> dict[str, Tensor]:
    """The autoencoder's state dict, fp32."""
    return load_file(WEIGHTS / "vae.safetensors")
