"""Encoding texts and images with ComfyUI's own encoders, for the caches, and a hash that identifies an encoder."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from torch import Tensor, nn

from ...errors import UserError
from ...hashing import canonical_hash
from ...settings.memory import AUTO
from ...streaming.ring import Direct
from ..loading import deferred
from ..system.heap import freed_at_once
from . import streamed_text

LATENT_CHANNELS = 128
SAMPLED = 16  # values of each weight that go into an encoder's identity
PRECISIONS = {"as loaded": None, "fp32": torch.float32, "bf16": torch.bfloat16}
SMALLEST_TILE = 128  # pixels; ComfyUI also encodes tiles of half this side, which must still overlap
STATISTICS = "flux2_train_statistics"  # on a VAE: batch-norm mean and variance as its file has them


def _encode(clip: CLIP, tokens: dict) -> Tensor:
    with freed_at_once(clip.patcher.load_device, clip.patcher.model_size()):
        return clip.encode_from_tokens_scheduled(tokens)[0][0].cpu()


class TextEncoder:
    """A CLIP for the cache: gives each text's key, and encodes texts of equal length together.

    ComfyUI encodes the sections of one prompt as rows of one batch. Several prompts of equal length are passed as
    sections of one, and each gets the embeds that it would get alone. ``offload`` decides whether the encoder's layers
    are streamed: ``all`` streams, ``auto`` streams if it does not fit its card, ``off`` never does. Streaming starts
    with the first text and ends with this context. Raises UserError for a CLIP with hooks, which change embeds over the
    steps.
    """

    def __init__(self, clip: CLIP, offload: str = AUTO, via: Direct | None = None):
        if getattr(clip.patcher, "forced_hooks", None) is not None:
            raise UserError("This CLIP carries hooks, which change embeds over the steps and cannot be cached; "
                            "wire the CLIP without them.")  # fmt: skip
        self.clip = clip
        self.identity = identity_of(clip.cond_stage_model, clip.patcher, _layers(clip))
        self.tokens: dict[str, dict] = {}
        self.offload, self.via, self.streaming = offload, via, ExitStack()
        self.ready = self.ring = None  # set at the first text: the CLIP to encode with, and its ring if it streams

    def __enter__(self) -> TextEncoder:
        return self

    def __exit__(self, *_) -> None:
        self.ready = self.ring = None
        self.streaming.close()

    def key(self, text: str) -> str:
        """Hash of what a text's embeds depend on: the encoder, and the tokens with those of the template."""
        return canonical_hash([self.identity, _plain(self._tokenized(text))])

    def length(self, text: str) -> int:
        """How many tokens the encoder gets for a text, with those of the template and of padding."""
        return max(len(section) for sections in self._tokenized(text).values() for section in sections)

    def _tokenized(self, text: str) -> dict:
        if text not in self.tokens:
            self.tokens[text] = self.clip.tokenize(text)
        return self.tokens[text]

    def batches(self, texts: list[str], most: int) -> Iterator[list[str]]:
        """The texts in groups of at most ``most`` that can be encoded together."""
        groups: dict[object, list[str]] = {}
        for text in texts:
            self.key(text)
            groups.setdefault(_length(self.tokens[text]) or text, []).append(text)
        for group in groups.values():
            yield from (group[i : i + most] for i in range(0, len(group), most))

    def __call__(self, texts: list[str]) -> list[Tensor]:
        """(1, L, D) for each text of one of ``batches``."""
        tokens = [self.tokens[text] for text in texts]
        together = {name: [section for t in tokens for section in t[name]] for name in tokens[0]}
        return list(_encode(self._begin(), together).chunk(len(texts), dim=1))

    def _begin(self) -> CLIP:
        """The CLIP to encode with; starts streaming at the first call if it is needed."""
        if self.ready is None:
            self.ready = self.clip
            if streamed_text.needed(self.clip, self.offload):
                self.ready, self.ring = self.streaming.enter_context(streamed_text.streamed(self.clip, self.via))
        return self.ready


def _layers(clip: CLIP) -> list:
    """Which of the encoder's layers give the embeds, and options that a node has set on the CLIP."""
    models = [m for m in clip.cond_stage_model.modules() if hasattr(m, "options_default")]
    chosen = [[type(m).__name__, m.options_default[:2], getattr(m, "layer_norm_hidden_state", None)] for m in models]
    return [repr(chosen), clip.layer_idx, repr(sorted(clip.tokenizer_options.items()))]


def _length(tokens: dict) -> tuple | None:
    """What must be equal for prompts to share a batch; None for a prompt that must be encoded alone."""
    simple = all(len(sections) == 1 and all(_is_plain(token) for token in sections[0]) for sections in tokens.values())
    return tuple((name, len(sections[0])) for name, sections in sorted(tokens.items())) if simple else None


def _is_plain(token: tuple) -> bool:
    return isinstance(token[0], int) and token[1] == 1.0


def _plain(value: object) -> object:
    """Tokens as plain values; a tensor (a textual inversion) becomes a hash of its content."""
    if isinstance(value, Tensor):
        return hashlib.blake2b(_bytes(value), digest_size=16).hexdigest()
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value if isinstance(value, (int, float, str, type(None))) else repr(value)


class ImageEncoder:
    """A VAE for the cache, in its own precision or another one; the graph's VAE is not changed.

    Images are encoded in tiles of ``tile`` pixels a side, or whole with 0. If memory runs out, ComfyUI itself encodes
    in tiles; ``in_tiles`` counts that, because such latents differ slightly.
    """

    def __init__(self, vae: VAE, precision: str = "as loaded", tile: int = 0):
        if 0 < tile < SMALLEST_TILE:
            raise UserError(f"tile is {tile}; at least {SMALLEST_TILE} pixels are needed, 0 encodes whole images.")
        self.vae, self.tile, self.in_tiles = _borrowed(vae, PRECISIONS[precision]), tile, 0
        module = self.vae.first_stage_model
        self.identity = identity_of(module, self.vae.patcher, [str(self.vae.vae_dtype), tile])
        fall_back = self.vae.encode_tiled_

        def counting(*args, **kwargs):
            self.in_tiles += 1
            return fall_back(*args, **kwargs)

        if not tile:
            self.vae.encode_tiled_ = counting

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 128, H/16, W/16) fp32 on the CPU for ComfyUI's IMAGE (B, H, W, 3).

        Raises UserError if the VAE is not FLUX.2's.
        """
        # an image's activations are several times larger than the weights
        low_memory = freed_at_once(self.vae.device, 10 * self.vae.patcher.model_size())
        with _fp32_statistics(self.vae) as normalise, low_memory:
            if self.tile and max(images.shape[1:3]) > self.tile:
                latents = self.vae.encode_tiled(images, tile_x=self.tile, tile_y=self.tile, overlap=self.tile // 4)
            else:
                latents = self.vae.encode(images)
            return _checked(normalise(latents.float().cpu()), images)


def _checked(latents: Tensor, images: Tensor) -> Tensor:
    expected = (images.shape[0], LATENT_CHANNELS, images.shape[1] // 16, images.shape[2] // 16)
    if tuple(latents.shape) != expected:
        raise UserError(
            f"This VAE made latents of shape {tuple(latents.shape)}, FLUX.2 needs {expected}: wire the VAE of "
            "Load FLUX.2, or Load VAE with flux2-vae.safetensors."
        )
    if not torch.isfinite(latents).all():
        raise UserError("The VAE made latents that are not finite numbers; set vae_precision to fp32.")
    return latents


def _borrowed(vae: VAE, dtype: torch.dtype | None) -> VAE:
    """A copy of the VAE object that shares the weights, or has a copy of them in another precision."""
    own = copy.copy(vae)
    if dtype is None or dtype == vae.vae_dtype:
        return own
    own.first_stage_model = copy.deepcopy(vae.first_stage_model).to(dtype)
    own.vae_dtype = dtype
    patcher = vae.patcher
    own.patcher = type(patcher)(own.first_stage_model, load_device=vae.device, offload_device=patcher.offload_device)
    return own


class _Unit(nn.Module):
    """Batch-norm statistics of mean 0 and variance 1, which change nothing."""

    def __init__(self, size: int):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(size))
        self.register_buffer("running_var", torch.ones(size))


@contextmanager
def _fp32_statistics(vae: VAE) -> Iterator[Callable[[Tensor], Tensor]]:
    """Yield a function that normalises latents in fp32, where ComfyUI would do it in the VAE's 16 bits.

    Inside, ComfyUI's batch norm has unit statistics; its division by sqrt(1 + 1e-4) is below bf16's rounding.
    """
    module = vae.first_stage_model
    norm = getattr(module, "bn", None)
    if vae.vae_dtype == torch.float32 or norm is None or not hasattr(module, "bn_eps"):
        yield lambda latents: latents
        return
    mean, var = (value.float().cpu().view(1, -1, 1, 1) for value in statistics(vae))
    module.bn = _Unit(mean.numel())
    try:
        yield lambda latents: (latents - mean) / torch.sqrt(var + module.bn_eps)
    finally:
        module.bn = norm


def statistics(vae: VAE) -> tuple[Tensor, Tensor]:
    """Batch-norm mean and variance: the file's own if Load FLUX.2 kept them, else the VAE's, which may be rounded."""
    norm = vae.first_stage_model.bn
    return getattr(vae, STATISTICS, None) or (norm.running_mean, norm.running_var)


def identity_of(module: nn.Module, patcher: ModelPatcher, extra: object) -> str:
    """Hash that identifies an encoder: class, a sample of every weight with dtype and shape, patches, ``extra``.

    It does not depend on the device, nor on whether patches are applied at the moment.
    """
    with deferred.present(module):
        sampled = _sampled(module, patcher)
    return canonical_hash([type(module).__qualname__, sampled, _patches(patcher.patches), extra])


def _sampled(module: nn.Module, patcher: ModelPatcher) -> str:
    state, digest = dict(module.state_dict()), hashlib.blake2b(digest_size=16)
    for name, original in getattr(patcher, "backup", {}).items():
        if name in state:
            state[name] = original.weight
    parts = {k: v for name, weight in state.items() for k, v in _parts(name, weight).items()}
    for name, weight in sorted(parts.items()):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode() + _bytes(_sample(weight)))
    return digest.hexdigest()


def _parts(name: str, weight: Tensor) -> dict[str, Tensor]:
    """A weight's tensors by name: itself, or the values and scales of a quantised one."""
    state_dict = getattr(weight, "state_dict", None)  # plain tensors have none
    return state_dict(name) if state_dict else {name: weight}


def _sample(weight: Tensor) -> Tensor:
    """A few evenly spaced values of a weight."""
    flat = getattr(weight, "_qdata", weight).reshape(-1)
    return flat[:: max(1, flat.numel() // SAMPLED)][:SAMPLED]


def _patches(value: object) -> object:
    if isinstance(value, Tensor):
        return [list(value.shape), str(value.dtype), _bytes(_sample(value)).hex()]
    if isinstance(value, dict):
        return {str(k): _patches(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_patches(v) for v in value]
    if isinstance(value, (int, float, str, type(None))):
        return value
    return [type(value).__name__, _patches(getattr(value, "weights", None))]


def _bytes(value: Tensor) -> bytes:
    return value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""
