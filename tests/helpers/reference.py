"""FLUX.2's transformer, written anew: plain functions on a state dict, nothing in place, no ComfyUI.

What the engine's forward and gradients are compared with. An adapter is a function from a Linear's weight to the
weight in its place; autograd does the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

HEAD_DIM, THETA, AXES = 128, 2000, 4
# ComfyUI gives its RMSNorm no eps, and torch then takes that of the dtype; Black Forest Labs' code has 1e-6
RMS_EPS = torch.finfo(torch.float32).eps


class Flux2:
    """Velocity of a FLUX.2 with the given state dict; sizes are read off the weights."""

    def __init__(self, weights: dict[str, Tensor], adapted: dict[str, Callable[[Tensor], Tensor]] | None = None):
        self.w = dict(weights)
        for name, change in (adapted or {}).items():
            self.w[f"{name}.weight"] = change(weights[f"{name}.weight"])
        self.double = len({k.split(".")[1] for k in weights if k.startswith("double_blocks.")})
        self.single = len({k.split(".")[1] for k in weights if k.startswith("single_blocks.")})

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.w[f"{name}.weight"].T

    def __call__(self, x: Tensor, t: Tensor, text: Tensor, references=(), guidance: float | None = None) -> Tensor:
        """x (B, 128, h, w), t (B,), text (B, L, D) already padded; references (B, 128, h, w) each."""
        image, places = tokens(x, 0)
        count = image.shape[1]
        for number, reference in enumerate(references, 1):
            more, at = tokens(reference, 10 * number)
            image, places = torch.cat([image, more], 1), torch.cat([places, at])
        words = torch.zeros(text.shape[1], AXES)
        words[:, 3] = torch.arange(text.shape[1])
        angles = rotary_angles(torch.cat([words, places])).to(x.dtype)
        vector = self.embed("time_in", t, x.dtype)
        if guidance is not None and "guidance_in.in_layer.weight" in self.w:
            vector = vector + self.embed("guidance_in", torch.full_like(t, guidance), x.dtype)
        stream = self.blocks(self.linear("img_in", image), self.linear("txt_in", text), vector, angles)
        shift, scale = self.linear("final_layer.adaLN_modulation.1", F.silu(vector))[:, None].chunk(2, -1)
        out = self.linear("final_layer.linear", norm(stream) * (1 + scale) + shift)[:, :count]
        return out.transpose(1, 2).reshape(x.shape)

    def embed(self, name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
        hidden = F.silu(self.linear(f"{name}.in_layer", sinusoids(value).to(dtype)))
        return self.linear(f"{name}.out_layer", hidden)

    def blocks(self, image: Tensor, text: Tensor, vector: Tensor, angles: Tensor) -> Tensor:
        modulation = {
            name: self.linear(f"{name}.lin", F.silu(vector))[:, None].chunk(parts, -1)
            for name, parts in (
                ("double_stream_modulation_img", 6),
                ("double_stream_modulation_txt", 6),
                ("single_stream_modulation", 3),
            )
        }
        for i in range(self.double):
            image, text = self.double_block(f"double_blocks.{i}.", image, text, modulation, angles)
        stream = torch.cat([text, image], 1)
        for i in range(self.single):
            stream = self.single_block(f"single_blocks.{i}.", stream, modulation["single_stream_modulation"], angles)
        return stream[:, text.shape[1] :]

    def double_block(self, at: str, image: Tensor, text: Tensor, modulation: dict, angles: Tensor):
        streams = {"txt": text, "img": image}
        mods = {name: modulation[f"double_stream_modulation_{name}"] for name in streams}
        parts = []
        for name, x in streams.items():
            shift, scale = mods[name][:2]
            qkv = self.linear(f"{at}{name}_attn.qkv", norm(x) * (1 + scale) + shift)
            parts.append(self.heads(qkv, f"{at}{name}_attn.norm."))
        q, k, v = (torch.cat(both, 2) for both in zip(*parts, strict=True))
        mixed = attend(q, k, v, angles).split([text.shape[1], image.shape[1]], 1)
        for (name, x), attention in zip(list(streams.items()), mixed, strict=True):
            _, _, gate, shift, scale, gate_mlp = mods[name]
            x = x + gate * self.linear(f"{at}{name}_attn.proj", attention)
            hidden = self.linear(f"{at}{name}_mlp.0", norm(x) * (1 + scale) + shift)
            streams[name] = x + gate_mlp * self.linear(f"{at}{name}_mlp.2", swiglu(hidden))
        return streams["img"], streams["txt"]

    def single_block(self, at: str, x: Tensor, modulation: tuple, angles: Tensor) -> Tensor:
        shift, scale, gate = modulation
        hidden = x.shape[-1]
        joint = self.linear(f"{at}linear1", norm(x) * (1 + scale) + shift)
        qkv, mlp = joint[..., : 3 * hidden], joint[..., 3 * hidden :]
        attention = attend(*self.heads(qkv, f"{at}norm."), angles)
        return x + gate * self.linear(f"{at}linear2", torch.cat([attention, swiglu(mlp)], -1))

    def heads(self, qkv: Tensor, norms: str) -> tuple[Tensor, Tensor, Tensor]:
        """(B, L, 3 H) to query, key, value (B, heads, L, 128), query and key normalised."""
        q, k, v = (part.unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2) for part in qkv.chunk(3, -1))
        return self.rms(q, f"{norms}query_norm"), self.rms(k, f"{norms}key_norm"), v

    def rms(self, x: Tensor, name: str) -> Tensor:
        scale = self.w.get(f"{name}.weight", self.w.get(f"{name}.scale"))
        return x * (x.square().mean(-1, keepdim=True) + RMS_EPS).rsqrt() * scale


def tokens(latent: Tensor, index: int) -> tuple[Tensor, Tensor]:
    """(B, C, h, w) to tokens (B, h w, C) and their places (h w, 4): index, row, column, 0."""
    height, width = latent.shape[-2:]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack([torch.full_like(rows, index), rows, columns, torch.zeros_like(rows)], -1)
    return latent.flatten(2).transpose(1, 2), places.flatten(0, 1).float()


def rotary_angles(places: Tensor) -> Tensor:
    """(L, 4) to angles (L, 64): 16 frequencies of each axis."""
    per_axis = HEAD_DIM // AXES
    frequencies = THETA ** -(torch.arange(0, per_axis, 2, dtype=torch.float64) / per_axis)
    return (places.double()[:, :, None] * frequencies).flatten(1)


def attend(q: Tensor, k: Tensor, v: Tensor, angles: Tensor) -> Tensor:
    """Softmax attention with rotated queries and keys; (B, L, H)."""
    q, k = rotate(q, angles), rotate(k, angles)
    weights = (q @ k.transpose(-1, -2) * HEAD_DIM**-0.5).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], -1).flatten(-2)


def norm(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred * (centred.square().mean(-1, keepdim=True) + 1e-6).rsqrt()


def swiglu(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


def sinusoids(value: Tensor) -> Tensor:
    """(B,) in 0..1 to (B, 256), cosines first; times are counted in thousandths."""
    frequencies = torch.exp(-math.log(10000) * torch.arange(128) / 128)
    angles = 1000 * value.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], -1)
