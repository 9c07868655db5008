"""`nano`: a small FLUX.2 that comes with the pack, so that every job runs anywhere without a download.

It has the classes and keys of the released flavours; only its sizes differ. ``bench/nano`` trained it; the README there
says how, on what data, and what it cannot do. Its file names carry a version, so that new weights never replace old
ones under the same name. torch is imported only when weights are needed, because the table of flavours imports this
module and must be fast to read.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from . import sizes

if TYPE_CHECKING:
    from torch import Tensor, nn

VERSION = 4
HIDDEN, DOUBLE_BLOCKS, SINGLE_BLOCKS = 256, 2, 6
CONTEXT = 3 * sizes.HIDDEN
RESOLUTION = 128
TEXT_LENGTH = 64  # tokens; its captions are short, and padding costs as much as words
# nano paints best without guidance, which would also exaggerate what a LoRA has learned only in part.
GUIDANCE = 1.0
TEXT_ENCODER_CONFIG = sizes.CONFIG
TRANSFORMER, TEXT_ENCODER, VAE = (
    f"flux2-nano-{VERSION}-{part}.safetensors" for part in ("transformer", "text-encoder", "vae")
)

WEIGHTS = Path(__file__).parent / "weights"


def transformer() -> dict[str, Tensor]:
    """The transformer's state dict, bf16, 9.9 M parameters."""
    return _weights("transformer")


def text_encoder() -> dict[str, Tensor]:
    """The text encoder's state dict, bf16, 24 M parameters; it is computed, not stored."""
    from .textgen import generate_text_encoder

    return generate_text_encoder()


def vae() -> dict[str, Tensor]:
    """The autoencoder's state dict, fp32; the decoder's convolutions fp16."""
    return _weights("vae")


def vae_module(layers: object) -> nn.Module:
    """The autoencoder without weights, of the layers in ``layers``: ``torch.nn`` or one of ``comfy.ops``."""
    from .overlap import OverlapAutoencoder

    return OverlapAutoencoder(layers)


def _weights(name: str) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(WEIGHTS / f"{name}.safetensors")
