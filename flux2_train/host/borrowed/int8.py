"""Matrix products of int8 numbers in place of a frozen Linear's, forward and backward, from one int8 weight.

Every token is quantised by its own largest number, and the weight by that of each output channel, so that a large
number takes bits from its own row alone. Before that, rows of tokens and weight are rotated, which keeps their products
as they are and spreads a large number over its neighbours (QuaRot, arXiv 2404.00456; ComfyUI's convrot). In backward
the channels' scales are multiplied into the gradient before its tokens are quantised: what is left of the weight are
the same int8 numbers. The product is rotated back. Sums are exact, in int32.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...planning.work import AT_ONCE
from ..system.compiler import reason_of

LARGEST = 127
ALIGNED = 32  # cuBLASLt on Turing wants multiples of it where newer cards want multiples of 8
IN_CACHE = 1 << 17  # numbers that a CPU converts at a time
GROUPS = 64, 16  # numbers that are rotated together: a group of 256 takes four times as long as one of 64
INT8_LAYOUT = "TensorWiseINT8Layout"  # comfy-kitchen's name of what ComfyUI calls int8_tensorwise


class Numbers(NamedTuple):
    """A weight (out, in): int8 ``values`` times ``scales`` (out, 1) in fp32.

    ``group``: every so many numbers of a row were rotated before, multiplied by a Hadamard matrix; 0 if none were.
    """

    values: Tensor
    scales: Tensor
    group: int = 0


def stored(weight: Tensor) -> Numbers | None:
    """The numbers of a weight that ComfyUI keeps in int8, as they are stored; None for another format."""
    params = getattr(weight, "_params", None)
    if getattr(weight, "_layout_cls", "") != INT8_LAYOUT or getattr(params, "transposed", False):
        return None
    scales = params.scale.float().reshape(-1, 1).expand(weight.shape[0], 1)
    return Numbers(weight._qdata, scales, params.convrot_groupsize if getattr(params, "convrot", False) else 0)


def quantised(weight: Tensor) -> Numbers:
    """A plain weight (out, in), rotated where ``group_of`` its input can be, with a scale for each output channel."""
    group = group_of(weight.shape[1])
    return Numbers(*_by_rows(weight, group=group), group)


def group_of(width: int) -> int:
    """How many numbers of a row of this width are rotated together: a power of 4 that divides it, 0 if none does."""
    return next((group for group in GROUPS if width % group == 0), 0)


def product(x: Tensor, weight: Numbers) -> Tensor:
    """``x W^T`` (R, out) in the dtype of ``x`` (R, in)."""
    found = x.new_empty(len(x), len(weight.values))
    for rows in _chunks(len(x), max(weight.values.shape), AT_ONCE):
        values, scales = _by_rows(x[rows], group=weight.group)
        _write(found[rows], _integers(values, weight.values.t()), scales, columns=weight.scales.t())
    return found


def transposed_product(grad: Tensor, weight: Numbers) -> Tensor:
    """``grad W`` (R, in) in the dtype of ``grad`` (R, out)."""
    found = grad.new_empty(len(grad), weight.values.shape[1])
    for rows in _chunks(len(grad), max(weight.values.shape), AT_ONCE):
        values, scales = _by_rows(grad[rows], columns=weight.scales.t())
        _write(found[rows], _integers(values, weight.values), scales, group=weight.group)
    return found


def fits(into: int, out: int) -> bool:
    """Whether a Linear's features are such that every device with int8 products has them in both directions."""
    return into % ALIGNED == 0 and out % ALIGNED == 0


@cache
def problem(device: torch.device) -> str:
    """Why a device has no int8 products, in torch's words; empty if both directions give the right numbers."""
    with torch.inference_mode(False), torch.no_grad():
        numbers = (torch.arange(3 * ALIGNED * ALIGNED) % 255 - LARGEST).to(torch.int8)
        weight, grad = numbers.view(-1, ALIGNED), numbers.view(ALIGNED, -1)
        x = weight[:ALIGNED]
        try:
            there = weight.to(device)
            y, dx = _integers(x.to(device), there.t()).cpu(), _integers(grad.to(device), there).cpu()
        except Exception as error:  # whatever is missing, the run goes on without it
            return reason_of(error)
        right = torch.equal(y, x.int() @ weight.t().int()) and torch.equal(dx, grad.int() @ weight.int())
    return "" if right else "it computes wrong numbers"


def _by_rows(matrix: Tensor, columns: Tensor | None = None, group: int = 0) -> tuple[Tensor, Tensor]:
    """``matrix`` (R, C) as int8 values (R, C) and a scale (R, 1) for each row, in fp32.

    Before that it is multiplied by ``columns`` (1, C), or rotated by ``group``. Rounded to the nearest, halves to even.
    A row that is not finite gets a scale that is not finite.
    """
    values = torch.empty(matrix.shape, dtype=torch.int8, device=matrix.device)
    scales = torch.empty(len(matrix), 1, dtype=torch.float32, device=matrix.device)
    for rows, room in _parts(matrix):
        part = _changed(matrix[rows], columns, group, room)
        largest = torch.maximum(part.amax(1, keepdim=True), -part.amin(1, keepdim=True))
        scales[rows] = scale = largest.float() / LARGEST
        values[rows] = torch.mul(part, torch.where(scale == 0, 0.0, 1 / scale), out=room).round_()
    return values, scales


def _write(found: Tensor, integers: Tensor, scales: Tensor, columns: Tensor | None = None, group: int = 0) -> None:
    """``integers`` (R, C) times ``scales`` (R, 1), then times ``columns`` (1, C) or rotated by ``group``."""
    for rows, room in _parts(found):
        if found.device.type == "cpu":
            room.copy_(integers[rows]).mul_(scales[rows])  # faster there than a product of two dtypes
        else:
            torch.mul(integers[rows], scales[rows], out=room)
        there = found[rows]
        changed = _changed(room, columns, group, there)
        if changed is not there:
            there.copy_(changed)


def _changed(part: Tensor, columns: Tensor | None, group: int, room: Tensor) -> Tensor:
    """``part`` (R, C) times ``columns`` (1, C), in ``room``, or rotated by ``group``; ``part`` itself if neither."""
    if columns is not None:
        return torch.mul(part, columns, out=room)
    return _rotated(part, group, room) if group else part


def _integers(a: Tensor, b: Tensor) -> Tensor:
    """``a b`` (R, C) int32 of int8 matrices. CUDA wants more than 16 rows: they are filled up."""
    missing = 0 if a.device.type == "cpu" else -len(a) % ALIGNED
    return torch._int_mm(F.pad(a, (0, 0, 0, missing)) if missing else a, b)[: len(a)]


def _parts(matrix: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Slices of rows that are converted at a time, each with room for them in fp32, or in fp64 for a matrix of that.

    The room is the same memory for all: new memory costs a CPU more time than what is written into it.
    """
    slices = list(_chunks(*matrix.shape, IN_CACHE if matrix.device.type == "cpu" else AT_ONCE))
    most = slices[0].stop if slices else 0
    dtype = torch.promote_types(matrix.dtype, torch.float32)
    room = torch.empty(min(most, len(matrix)), matrix.shape[1], dtype=dtype, device=matrix.device)
    return ((rows, room[: min(rows.stop, len(matrix)) - rows.start]) for rows in slices)


def _chunks(rows: int, columns: int, most: int) -> Iterator[slice]:
    """Slices of the rows with about ``most`` numbers in each."""
    step = max(1, most // columns)
    return (slice(start, start + step) for start in range(0, rows, step))


def _rotated(matrix: Tensor, group: int, room: Tensor) -> Tensor:
    """``matrix`` (R, C) with every ``group`` numbers of a row multiplied by the Hadamard matrix, its own inverse.

    Of the dtypes of ``matrix`` and ``room`` (R, C) in that of fewer bits, but not in fp16, because a rotated number may
    be 8 times as large as the largest one before. It is written to ``room`` if that has this dtype.
    """
    dtype = min(matrix.dtype, room.dtype, key=lambda each: each.itemsize)
    dtype = torch.float32 if dtype == torch.float16 else dtype
    groups, right = matrix.reshape(-1, group).to(dtype), _hadamard(group, dtype, matrix.device)
    if room.dtype != dtype:
        return (groups @ right).view(matrix.shape)
    torch.mm(groups, right, out=room.view(-1, group))
    return room


@cache
def _hadamard(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The regular Hadamard matrix of a power of 4, orthonormal: Kronecker products of one of four rows."""
    with torch.inference_mode(False):
        four = (torch.ones(4, 4) - 2 * torch.eye(4).flip(1)) / 2
        found = torch.ones(1, 1)
        while len(found) < size:
            found = torch.kron(found, four)
        return found.to(device, dtype)
