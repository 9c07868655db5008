"""The transformer as a velocity field: text tokens, one call, the loss's `t`, and an Euler sampler."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from flux2_train.flavours import FLAVOURS

from .host import PAD, OutOfPlaceAdd, attention, encode, token_ids

GUIDANCE, TEXT_LENGTH = FLAVOURS["nano"].guidance, FLAVOURS["nano"].text_length
T_MEAN, T_STD = 0.8, 1.2  # logit-normal t; the sampler's own schedule has its median at logit 1.8


@dataclass
class Text:
    """Embeds (B, L, 384) and their positions (B, L)."""

    embeds: torch.Tensor
    positions: torch.Tensor


def text(captions: list[str]) -> Text:
    """All positions, padding too, as ComfyUI gives them to the model: 64, or as many as the longest caption has.

    A caption of more tokens makes all of them longer, so give such captions alone.
    """
    rows = [token_ids(c) for c in captions]
    length = max(TEXT_LENGTH, *map(len, rows))
    ids = torch.tensor([row + (PAD,) * (length - len(row)) for row in rows])
    positions = torch.arange(length).expand(len(rows), -1)
    return Text(encode(ids, positions, (ids != PAD).long()), positions.float())


def velocity(
    model: nn.Module, x_t: torch.Tensor, t: torch.Tensor, text: Text, reference: torch.Tensor | None = None
) -> torch.Tensor:
    """Noise minus data (B, 128, h, w) at x_t (B, 128, h, w) and t (B,); `reference` as in klein edits."""
    b, c, h, w = x_t.shape
    tokens, ids = model.process_img(x_t)
    if reference is not None:
        more, more_ids = model.process_img(reference, index=model.params.ref_index_scale)
        tokens, ids = torch.cat((tokens, more), 1), torch.cat((ids, more_ids), 1)
    text_ids = torch.zeros(*text.positions.shape, 4)
    text_ids[..., 3] = text.positions
    with OutOfPlaceAdd():
        out = model.forward_orig(
            tokens,
            ids,
            text.embeds,
            text_ids,
            t,
            None,
            attn_mask=None,
            transformer_options={"optimized_attention_override": attention},
        )
    return out[:, : h * w].transpose(1, 2).reshape(b, c, h, w)


def loss(
    model: nn.Module, x0: torch.Tensor, text: Text, reference: torch.Tensor | None, generator: torch.Generator
) -> torch.Tensor:
    """Mean squared error of the velocity at a logit-normal t."""
    t = torch.sigmoid(T_MEAN + T_STD * torch.randn(len(x0), generator=generator))
    noise = torch.randn(x0.shape, generator=generator)
    mix = t.view(-1, 1, 1, 1)
    return (velocity(model, (1 - mix) * x0 + mix * noise, t, text, reference) - (noise - x0)).pow(2).mean()


def schedule(steps: int, tokens: int) -> torch.Tensor:
    """(steps + 1,) descending t of ComfyUI's Flux2Scheduler."""
    from .host import use_comfyui

    use_comfyui()
    from comfy_extras.nodes_flux import get_schedule

    return get_schedule(steps, tokens)


@torch.no_grad()
def sample(
    model: nn.Module,
    noise: torch.Tensor,
    positive: Text,
    negative: Text,
    reference: torch.Tensor | None = None,
    steps: int = 20,
    guidance: float = GUIDANCE,
) -> torch.Tensor:
    """Euler from noise (B, 128, h, w) to latents; with a guidance other than 1 it is classifier-free guidance."""
    x, times = noise, schedule(steps, noise.shape[-1] * noise.shape[-2])
    for now, then in pairwise(times):
        t = now.expand(len(x))
        v = velocity(model, x, t, positive, reference)
        if guidance != 1:
            other = velocity(model, x, t, negative, reference)
            v = other + guidance * (v - other)
        x = x + (then - now) * v
    return x
