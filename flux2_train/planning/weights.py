"""The transformer as the planner sees it: the sizes of its Linears, and the bytes of each as it is stored."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import safetensors_header
from ..adapters import diffusers
from ..adapters.names import FIRST, Sizes, bare_name, dimensions_of, sizes_of
from ..errors import UserError
from ..flavours import Flavour
from ..formats import PRECISIONS

FOUR_BITS = 0.7  # a file with fewer bytes per number than this is taken to be stored in 4 bits
BLOCK = re.compile(r"(double|single)_blocks\.\d+\.")


@dataclass(frozen=True)
class Weights:
    """A FLUX.2 transformer: its sizes, and the stored bytes of every Linear by name.

    ``plain``: the Linears that are stored unquantised; the others are dequantised on use. ``mapped``: they are mapped
    from a file, so host memory need not hold them: what it has no room for is read from the file each time.
    """

    hidden: int
    double: int
    single: int
    linears: Sizes
    stored: dict[str, int]
    plain: frozenset[str]
    mapped: bool = False

    @property
    def context(self) -> int:
        """The number of features of a text token."""
        return self.linears["txt_in"][0]

    @property
    def blocks(self) -> list[str]:
        """Names of the blocks in the order in which they run."""
        double = [f"double_blocks.{n}" for n in range(self.double)]
        return double + [f"single_blocks.{n}" for n in range(self.single)]

    def inside(self, block: str) -> list[str]:
        """The Linears of a block."""
        return [name for name in self.linears if name.startswith(f"{block}.")]

    def block_bytes(self) -> list[int]:
        """Stored bytes of each block's Linears."""
        return [sum(self.stored[name] for name in self.inside(block)) for block in self.blocks]

    @property
    def total(self) -> int:
        """Stored bytes of all Linears; norms, 128 numbers each, are left out."""
        return sum(self.stored.values())

    @property
    def quantised(self) -> bool:
        """Whether some Linears are dequantised on use."""
        return self.plain != frozenset(self.linears)

    @property
    def format(self) -> str:
        """A precision that costs as much to dequantise as these weights: bf16 if nothing is quantised."""
        if not self.quantised:
            return "bf16"
        numbers = sum(into * out for into, out in self.linears.values())
        return "int4" if self.total / numbers < FOUR_BITS else "fp8 (scaled)"


def of_flavour(row: Flavour, precision: str) -> Weights:
    """A flavour as Load FLUX.2 stores it: the blocks' matrices in ``precision``, all others in bf16 if it is quantised.

    Raises UserError for a precision whose bytes are not known without the file.
    """
    if precision not in PRECISIONS:
        known = ", ".join(PRECISIONS)
        raise UserError(f"Without the file nobody knows what {precision!r} takes; choose one of {known}.")
    sizes = sizes_of(*row.sizes)
    if not row.embedded_guidance:
        sizes = {name: size for name, size in sizes.items() if not name.startswith("guidance_in")}
    inside = PRECISIONS[precision]
    outside = inside if inside.computes else PRECISIONS["bf16"]
    stored = {n: (inside if BLOCK.match(n) else outside).stored_bytes(out, into) for n, (into, out) in sizes.items()}
    plain = frozenset(n for n in sizes if inside.computes or not BLOCK.match(n))
    return Weights(row.hidden, row.double_blocks, row.single_blocks, sizes, stored, plain)


def of_files(parts: Sequence[Path]) -> Weights:
    """The transformer in safetensors files, from their headers alone, under ComfyUI's names or diffusers'.

    Raises UserError if they hold no FLUX.2.
    """
    read = [safetensors_header.read(part) for part in parts]
    tensors = {name: _Tensor(e.shape, e.dtype, e.nbytes) for each in read for name, e in each.tensors.items()}
    file, mapped = parts[0].name, not diffusers.is_diffusers(tensors)  # those are joined, in memory
    if not mapped:
        origins = diffusers.origins(tensors, file)
        tensors = {name: _joined([tensors[key] for key in origin.keys]) for name, origin in origins.items()}
    first = next((name for name in tensors if name.endswith(FIRST)), None)
    if first is None:
        raise UserError(f"{file} is not a FLUX.2 transformer in the names of ComfyUI or diffusers.")
    prefix = first.removesuffix(FIRST)
    by_name = {bare_name(name.removeprefix(prefix)): each for name, each in tensors.items() if name.startswith(prefix)}
    dimensions = dimensions_of({name: tensor.shape for name, tensor in by_name.items()}, file)
    size: dict[str, int] = {}
    for key, tensor in by_name.items():
        layer, _, own = key.rpartition(".")
        size[layer] = size.get(layer, 0) + (tensor.nbytes if own != "comfy_quant" else 0)
    linears = {name: shape for name, shape in sizes_of(*dimensions).items() if f"{name}.weight" in by_name}
    stored = {name: size[name] for name in linears}
    plain = frozenset(name for name in linears if by_name[f"{name}.weight"].dtype in ("BF16", "F16", "F32"))
    return Weights(*dimensions[:3], linears, stored, plain, mapped)


@dataclass(frozen=True)
class _Tensor:
    shape: tuple[int, ...]
    dtype: str
    nbytes: int


def _joined(tensors: Sequence[_Tensor]) -> _Tensor:
    """Matrices with the same number of columns, joined along their rows."""
    rows = sum(tensor.shape[0] if tensor.shape else 0 for tensor in tensors)
    return _Tensor((rows, *tensors[0].shape[1:]), tensors[0].dtype, sum(tensor.nbytes for tensor in tensors))
