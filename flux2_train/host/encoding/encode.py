"""Text and images through ComfyUI's own encoders, for the caches, and what identifies an encoder."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from ...errors import UserError
from ...hashing import canonical_hash
from ...settings.memory import AUTO
from ...streaming.ring import Direct
from ..loading import deferred
from ..system.heap import freed_at_once
from . import streamed_text

LATENT_CHANNELS = 128
SAMPLED = 16  # values of each weight that tell one file from another
PRECISIONS = {"as loaded": None, "fp32": torch.float32, "bf16": torch.bfloat16}
SMALLEST_TILE = 128  # pixels; ComfyUI also takes tiles of half the side, which must still overlap
STATISTICS = "flux2_train_statistics"  # on a VAE: batch-norm mean and variance as its file has them


def _encode(clip, tokens: dict) -> Tensor:
    with freed_at_once(clip.patcher.load_device, clip.patcher.model_size()):
        return clip.encode_from_tokens_scheduled(tokens)[0][0].cpu()


class TextEncoder:
    """A CLIP for the cache: knows each text's key, and encodes texts of equal length together.

    ComfyUI encodes the sections of one prompt as rows of one batch, so several prompts of one length, given as
    sections, are what each would be alone. ``offload`` streams the encoder's layers: ``all`` does, ``auto`` where it
    does not fit its card, ``off`` leaves it to ComfyUI; this begins with the first text and ends with the context.
    Raises UserError for a CLIP that changes over a schedule.
    """

    def __init__(self, clip, offload: str = AUTO, via: Direct | None = None):
        if getattr(clip.patcher, "forced_hooks", None) is not None:
            raise UserError("This CLIP carries hooks, which change embeds over the steps and cannot be cached; "
                            "wire the CLIP without them.")  # fmt: skip
        self.clip = clip
        self.identity = identity_of(clip.cond_stage_model, clip.patcher, _layers(clip))
        self.tokens: dict[str, dict] = {}
        self.offload, self.via, self.streaming = offload, via, ExitStack()
        self.ready = self.ring = None  # from the first text on: the CLIP to encode with, and its ring if it streams

    def __enter__(self) -> TextEncoder:
        return self

    def __exit__(self, *_) -> None:
        self.ready = self.ring = None
        self.streaming.close()

    def key(self, text: str) -> str:
        """What the embeds of a text depend on: the encoder and the very tokens it gets, template included."""
        return canonical_hash([self.identity, _plain(self._tokenized(text))])

    def length(self, text: str) -> int:
        """How many tokens the encoder gets for a text: those of its template included, and of padding."""
        return max(len(section) for sections in self._tokenized(text).values() for section in sections)

    def _tokenized(self, text: str) -> dict:
        if text not in self.tokens:
            self.tokens[text] = self.clip.tokenize(text)
        return self.tokens[text]

    def batches(self, texts: list[str], most: int) -> Iterator[list[str]]:
        """The texts in groups that can be encoded together."""
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

    def _begin(self):
        if self.ready is None:
            self.ready = self.clip
            if streamed_text.needed(self.clip, self.offload):
                self.ready, self.ring = self.streaming.enter_context(streamed_text.streamed(self.clip, self.via))
        return self.ready


def _layers(clip) -> list:
    """What is taken from the encoder: layers, and options that a node has set on the CLIP."""
    models = [m for m in clip.cond_stage_model.modules() if hasattr(m, "options_default")]
    chosen = [[type(m).__name__, m.options_default[:2], getattr(m, "layer_norm_hidden_state", None)] for m in models]
    return [repr(chosen), clip.layer_idx, repr(sorted(clip.tokenizer_options.items()))]


def _length(tokens: dict) -> tuple | None:
    """What must be equal for prompts to share a batch; None for one that has to be alone."""
    simple = all(len(sections) == 1 and all(_is_plain(token) for token in sections[0]) for sections in tokens.values())
    return tuple((name, len(sections[0])) for name, sections in sorted(tokens.items())) if simple else None


def _is_plain(token: tuple) -> bool:
    return isinstance(token[0], int) and token[1] == 1.0


def _plain(value: object) -> object:
    """Tokens as plain values; embeddings among them by their content."""
    if isinstance(value, Tensor):
        return hashlib.blake2b(_bytes(value), digest_size=16).hexdigest()
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value if isinstance(value, (int, float, str, type(None))) else repr(value)


class ImageEncoder:
    """A VAE for the cache, at its own precision or another one; the graph's VAE itself stays as it is.

    ``tile`` pixels a side are encoded at a time, 0 for the whole image, unless memory runs out: ComfyUI then takes
    tiles itself, which ``in_tiles`` counts because such latents are slightly different.
    """

    def __init__(self, vae, precision: str = "as loaded", tile: int = 0):
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
        # activations of an image are several times the size of the weights
        thrifty = freed_at_once(self.vae.device, 10 * self.vae.patcher.model_size())
        with _fp32_statistics(self.vae) as normalised, thrifty:
            if self.tile and max(images.shape[1:3]) > self.tile:
                latents = self.vae.encode_tiled(images, tile_x=self.tile, tile_y=self.tile, overlap=self.tile // 4)
            else:
                latents = self.vae.encode(images)
            return _checked(normalised(latents.float().cpu()), images)


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


def _borrowed(vae, dtype: torch.dtype | None):
    """A VAE of its own that shares the weights, or has a copy of them in another precision."""
    own = copy.copy(vae)
    if dtype is None or dtype == vae.vae_dtype:
        return own
    own.first_stage_model = copy.deepcopy(vae.first_stage_model).to(dtype)
    own.vae_dtype = dtype
    patcher = vae.patcher
    own.patcher = type(patcher)(own.first_stage_model, load_device=vae.device, offload_device=patcher.offload_device)
    return own


class _Unit(nn.Module):
    """Batch-norm statistics that change nothing."""

    def __init__(self, size: int):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(size))
        self.register_buffer("running_var", torch.ones(size))


@contextmanager
def _fp32_statistics(vae) -> Iterator:
    """Normalise latents in fp32 where ComfyUI would do it in the VAE's 16 bits; yields what is still to be applied.

    Division by sqrt(1 + 1e-4), which ComfyUI's batch norm does with unit statistics, is below bf16's rounding.
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


def statistics(vae) -> tuple[Tensor, Tensor]:
    """Batch-norm mean and variance: as in the file where Load FLUX.2 kept them, else as the VAE holds them."""
    norm = vae.first_stage_model.bn
    return getattr(vae, STATISTICS, None) or (norm.running_mean, norm.running_var)


def identity_of(module: nn.Module, patcher, extra: object) -> str:
    """Tells one encoder from another: class, a sample of every weight with its dtype and shape, patches, ``extra``.

    Independent of device and of whether patches are applied at the moment.
    """
    with deferred.present(module):
        sampled = _sampled(module, patcher)
    return canonical_hash([type(module).__qualname__, sampled, _patches(patcher.patches), extra])


def _sampled(module: nn.Module, patcher) -> str:
    state, found = dict(module.state_dict()), hashlib.blake2b(digest_size=16)
    for name, original in getattr(patcher, "backup", {}).items():
        if name in state:
            state[name] = original.weight
    parts = {k: v for name, weight in state.items() for k, v in _parts(name, weight).items()}
    for name, weight in sorted(parts.items()):
        found.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode() + _bytes(_sample(weight)))
    return found.hexdigest()


def _parts(name: str, weight: Tensor) -> dict[str, Tensor]:
    """A weight by its name; a quantised one as its values and scales."""
    stored = getattr(weight, "state_dict", None)  # which plain tensors do not have
    return stored(name) if stored else {name: weight}


def _sample(weight: Tensor) -> Tensor:
    """A few values at even distances."""
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
