"""A part: what an adapter adds to one Linear, whether it is being trained or comes from a file.

Training, file formats and LoRA Apply share these classes: live parameters, a file's tensors and ComfyUI's patches are
all converted to parts, and everything that is done with an adapter is done with its parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# A Linear's weight (out, in) and bias (out,) in a dtype on a device, valid inside the context only.
Base = Callable[[torch.dtype, torch.device], AbstractContextManager[tuple[Tensor, Tensor | None]]]
# Gives what to add to a Linear's output y (..., out), from its input x (..., in), y and the base; None for nothing.
Delta = Callable[[Tensor, Tensor, Base], Tensor | None]


class Factors(NamedTuple):
    """A LoRA's matrices in the dtype of computation: ``down`` (rank, in), ``up`` (out, rank), and its scale."""

    down: Tensor
    up: Tensor
    scale: float


class PlainLora:
    """A Delta that may be a plain LoRA at the moment, which a Linear can add inside its own matrix product.

    ``reads_output``: whether it computes with the Linear's output ``y``, and does not only add to it.
    """

    reads_output: bool

    def parameters(self) -> tuple[Tensor, Tensor]:
        """The trained ``down`` and ``up``."""
        raise NotImplementedError

    def factors(self, dtype: torch.dtype) -> Factors | None:
        """What is added now, in ``dtype`` and without gradients; None if the Delta has to be called instead."""
        raise NotImplementedError

    def cast(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """``down`` and ``up`` in ``dtype`` and without gradients, whether or not they act now."""
        raise NotImplementedError

    def fuses(self, dtype: torch.dtype) -> bool:
        """Whether it is a plain LoRA beside a layer that computes in ``dtype``, so that ``factors`` are given."""
        raise NotImplementedError

    def sum_of(self, dtype: torch.dtype, device: torch.device, base: Base) -> Callable[[Tensor, Tensor], Tensor] | None:
        """Its call as a function of ``x`` and ``y`` alone, with gradients; None if nothing is added now."""
        raise NotImplementedError

    @property
    def uncompiled(self) -> str:
        """Why a block with this adapter cannot be compiled, as a half sentence; empty if it can."""
        raise NotImplementedError


@dataclass(frozen=True)
class LowRank:
    """LoRA (Hu et al. 2021): ``dW = scale * up @ down``, ``down`` (rank, in), ``up`` (out, rank).

    With ``magnitude`` (out,) it is DoRA (Liu et al. 2024): ``W' = magnitude * (W + dW) / |W + dW|``, the norm per row.
    ``of_base``: as ComfyUI reads a file's ``dora_scale``, with ``|W|`` for the norm.
    """

    down: Tensor
    up: Tensor
    scale: float = 1.0
    magnitude: Tensor | None = None
    of_base: bool = False

    def delta(self) -> Tensor:
        """dW (out, in), for DoRA without its magnitude."""
        return self.scale * (self.up @ self.down)

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` (..., in) to ``x dW^T`` (..., out)."""
        return F.linear(F.linear(x, self.down) * self.scale, self.up)  # scaled where it is narrow


@dataclass(frozen=True)
class Hadamard:
    """LoHa (Hyeon-Woo et al. 2021): ``dW = scale * (up1 @ down1) * (up2 @ down2)``, sizes as in LowRank."""

    up1: Tensor
    down1: Tensor
    up2: Tensor
    down2: Tensor
    scale: float = 1.0

    def delta(self) -> Tensor:
        """dW (out, in)."""
        return self.scale * (self.up1 @ self.down1) * (self.up2 @ self.down2)

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` (..., in) to ``x dW^T`` (..., out)."""
        return F.linear(x, self.delta())


@dataclass(frozen=True)
class Kronecker:
    """LoKr (Yeh et al. 2023): ``dW = scale * kron(left, right)``.

    ``left`` is (a, b) and ``right`` (c, d) with out = a c, in = b d; each is one matrix, or two whose product it is.
    """

    left: tuple[Tensor, ...]
    right: tuple[Tensor, ...]
    scale: float = 1.0

    def factors(self) -> tuple[Tensor, Tensor]:
        """Both factors multiplied out: (a, b) and (c, d)."""
        return _product(self.left), _product(self.right)

    def delta(self) -> Tensor:
        """dW (out, in)."""
        return self.scale * torch.kron(*self.factors())

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` (..., in) to ``x dW^T`` (..., out), without ever forming dW: ``left X right^T`` with X (b, d)."""
        left, right = self.factors()
        blocks = F.linear(x.unflatten(-1, (left.shape[1], right.shape[1])), right)
        # As a batch, so that the gradient of the small ``left`` is a sum of sums: all tokens in one product would be a
        # running sum of hundreds of thousands of fp32 terms, which loses two digits.
        return (left.expand(*blocks.shape[:-2], *left.shape) @ blocks).flatten(-2) * self.scale


@dataclass(frozen=True)
class Full:
    """A whole matrix: ``dW`` (out, in) itself."""

    diff: Tensor

    def delta(self) -> Tensor:
        """dW (out, in)."""
        return self.diff

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` (..., in) to ``x dW^T`` (..., out)."""
        return F.linear(x, self.diff)


@dataclass(frozen=True)
class Decomposed:
    """DoRA of another kind than LoRA, or over a layer's inputs: ``W' = magnitude * (W + dW) / |W + dW|``.

    ``magnitude`` and the norm are of each row (out,), with ``of_inputs`` of each column (in,). ``of_base``: the norm is
    ``|W|``, as ComfyUI reads rows. ``delta`` is that of ``part``, without the magnitude.
    """

    part: LowRank | Hadamard | Kronecker | Full
    magnitude: Tensor
    of_base: bool = False
    of_inputs: bool = False

    def delta(self) -> Tensor:
        """dW (out, in) without the magnitude."""
        return self.part.delta()

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` (..., in) to ``x dW^T`` (..., out) without the magnitude."""
        return self.part(x)


@dataclass(frozen=True)
class Rotation:
    """OFT (Qiu et al. 2023): ``W' = R W``, with ``of_inputs`` ``W' = W R``, R orthogonal and block-diagonal.

    Each of ``stages`` holds blocks (n, b, b); BOFT (Liu et al. 2023) has several, R their product, each but the first
    over entries that lie ``strides`` apart (0: neighbours). ``rescale`` (out,) multiplies the rows of the result.
    ``other`` is the size of the side of W that is not rotated.
    """

    stages: tuple[Tensor, ...]
    other: int
    strides: tuple[int, ...] = (0,)
    of_inputs: bool = False
    rescale: Tensor | None = None

    def turned(self, vectors: Tensor) -> Tensor:
        """``R v`` for vectors (..., n b), in their dtype."""
        for blocks, stride in zip(self.stages, self.strides, strict=True):
            vectors = _turned(vectors, blocks, stride)
        return vectors


@dataclass(frozen=True)
class Split:
    """Separate parts for ranges of a fused Linear's output rows, such as q, k and v. ``starts``: their first rows."""

    out: int
    starts: tuple[int, ...]
    parts: tuple[LowRank | Hadamard | Kronecker | Full | Decomposed | Rotation, ...]

    def pieces(self) -> Iterator[tuple[slice, Part]]:
        """Each part with its rows of the fused Linear."""
        for start, part in zip(self.starts, self.parts, strict=True):
            yield slice(start, start + size_of(part)[1]), part

    def delta(self) -> Tensor:
        """dW (out, in), zero in rows without a part."""
        deltas = [part.delta() for part in self.parts]
        joined = deltas[0].new_zeros(self.out, deltas[0].shape[1])
        for start, delta in zip(self.starts, deltas, strict=True):
            joined[start : start + len(delta)] = delta
        return joined

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` (..., in) to ``x dW^T`` (..., out)."""
        y = x.new_zeros(*x.shape[:-1], self.out)
        for own, part in self.pieces():
            y[..., own] = part(x)
        return y


Part = LowRank | Hadamard | Kronecker | Full | Decomposed | Rotation | Split


def size_of(part: Part) -> tuple[int, int]:
    """(in features, out features) of the Linear that a part belongs to."""
    match part:
        case LowRank():
            return part.down.shape[1], part.up.shape[0]
        case Hadamard():
            return part.down1.shape[1], part.up1.shape[0]
        case Kronecker():
            (a, b), (c, d) = ((matrices[0].shape[0], matrices[-1].shape[1]) for matrices in (part.left, part.right))
            return b * d, a * c
        case Full():
            return part.diff.shape[1], part.diff.shape[0]
        case Decomposed():
            return size_of(part.part)
        case Rotation():
            turned = part.stages[0].shape[0] * part.stages[0].shape[1]
            return (turned, part.other) if part.of_inputs else (part.other, turned)
        case Split():
            return size_of(part.parts[0])[0], part.out


def rows(part: Part, start: int, count: int) -> Part:
    """The part of ``count`` output rows from ``start``.

    Raises ValueError if there is none: the rows cut through a LoKr block, or the part acts on all rows at once.
    """
    end = start + count
    match part:
        case LowRank():
            magnitude = None if part.magnitude is None else part.magnitude[start:end]
            return replace(part, up=part.up[start:end], magnitude=magnitude)
        case Hadamard():
            return replace(part, up1=part.up1[start:end], up2=part.up2[start:end])
        case Kronecker():
            block = part.right[0].shape[0]
            if start % block or count % block:
                raise ValueError(f"rows {start} to {end} cut a Kronecker block of {block}")
            first = part.left[0][start // block : end // block]
            return replace(part, left=(first, *part.left[1:]))
        case Full():
            return Full(part.diff[start:end])
        case Decomposed() if not part.of_inputs:
            return replace(part, part=rows(part.part, start, count), magnitude=part.magnitude[start:end])
        case Split():
            raise ValueError("it is split already")
    raise ValueError("it acts on all rows at once")


def mapped(part: Part, change: Callable[[Tensor], Tensor]) -> Part:
    """The part with ``change`` applied to each of its tensors."""
    return replace(part, **{field.name: _changed(getattr(part, field.name), change) for field in fields(part)})


def _changed(value, change: Callable[[Tensor], Tensor]):
    # Not nested in ``mapped``: a nested function that calls itself is a reference cycle, so what ``change`` holds would
    # stay in memory until the next garbage collection.
    if isinstance(value, tuple):
        return tuple(_changed(each, change) for each in value)
    return change(value) if isinstance(value, Tensor) else mapped(value, change) if is_dataclass(value) else value


def _turned(vectors: Tensor, blocks: Tensor, stride: int) -> Tensor:
    """The blocks (n, b, b) times groups of entries of vectors (..., n b)."""
    if stride:  # LyCORIS's butterfly: pairs of runs of ``stride`` entries are interleaved, and back
        vectors = vectors.unflatten(-1, (-1, 2, stride)).transpose(-1, -2).flatten(-3)
    turned = torch.einsum("nij,...nj->...ni", blocks, vectors.unflatten(-1, blocks.shape[:2])).flatten(-2)
    return turned.unflatten(-1, (-1, stride, 2)).transpose(-1, -2).flatten(-3) if stride else turned


def _product(matrices: tuple[Tensor, ...]) -> Tensor:
    return matrices[0] if len(matrices) == 1 else matrices[0] @ matrices[1]
