"""The transformer as the planner sees it: sizes of its Linears, and how many bytes each takes where it is stored."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from ..adapters.names import Sizes, bare_name, sizes_of
from ..errors import UserError
from ..flavours import Flavour

LARGEST_HEADER = 1 << 27
BLOCK = re.compile(r"((double|single)_blocks)\.(\d+)\.")
# Bytes of a quantised (out, in) matrix with its scales, in the layouts of ComfyUI that host.quantise writes.
STORED = {
    "fp32": lambda out, into: 4 * out * into,
    "bf16": lambda out, into: 2 * out * into,
    "fp16": lambda out, into: 2 * out * into,
    "fp8 (e4m3)": lambda out, into: out * into,
    "fp8 (scaled)": lambda out, into: out * into + 4,
    "mxfp8": lambda out, into: out * into + out * into // 32,
    "int8": lambda out, into: out * into + 4 * out,
    "nvfp4": lambda out, into: out * into // 2 + out * into // 16 + 4,
    "int4": lambda out, into: out * into // 2 + 4 * out,
}


@dataclass(frozen=True)
class Weights:
    """A FLUX.2 transformer: its sizes, and the stored bytes of every Linear by name.

    ``plain`` are the Linears that are stored as the numbers they are computed with: the others are dequantised on use.
    """

    hidden: int
    double: int
    single: int
    linears: Sizes
    stored: dict[str, int]
    plain: frozenset[str]

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


def of_flavour(row: Flavour, precision: str) -> Weights:
    """A flavour as Load FLUX.2 stores it: ``precision`` for the blocks' matrices, bf16 for everything else.

    Raises UserError for a precision whose bytes are not known without the file.
    """
    if precision not in STORED:
        raise UserError(f"Without the file nobody knows what {precision!r} takes; choose one of {', '.join(STORED)}.")
    sizes = sizes_of(*row.sizes)
    if not row.embedded_guidance:
        sizes = {name: size for name, size in sizes.items() if not name.startswith("guidance_in")}
    quantised = precision not in ("fp32", "bf16", "fp16")
    outside = "bf16" if quantised else precision
    stored = {n: STORED[precision if BLOCK.match(n) else outside](out, into) for n, (into, out) in sizes.items()}
    plain = frozenset(n for n in sizes if not (quantised and BLOCK.match(n)))
    return Weights(row.hidden, row.double_blocks, row.single_blocks, sizes, stored, plain)


def of_file(path: Path) -> Weights:
    """The transformer in a safetensors file, from its header alone. Raises UserError if it holds no FLUX.2."""
    tensors = _header(path)
    first = next((name for name in tensors if name.endswith("double_blocks.0.img_attn.qkv.weight")), None)
    if first is None:
        raise UserError(f"{path.name} is not a FLUX.2 transformer in ComfyUI's names.")
    prefix = first.removesuffix("double_blocks.0.img_attn.qkv.weight")
    found = {bare_name(name.removeprefix(prefix)): entry for name, entry in tensors.items() if name.startswith(prefix)}
    double, single = (len({m[3] for name in found if (m := BLOCK.match(name)) and m[2] == k}) for k in KINDS)
    hidden = found["double_blocks.0.img_attn.qkv.weight"]["shape"][0] // 3
    every = sizes_of(hidden, double, single, found["txt_in.weight"]["shape"][1])
    linears = {name: size for name, size in every.items() if f"{name}.weight" in found}
    stored = {name: sum(_bytes(found[key]) for key in found if _belongs(key, name)) for name in linears}
    plain = frozenset(name for name in linears if found[f"{name}.weight"]["dtype"] in ("BF16", "F16", "F32"))
    return Weights(hidden, double, single, linears, stored, plain)


KINDS = ("double", "single")


def _header(path: Path) -> dict[str, dict]:
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if path.suffix != ".safetensors" or size > LARGEST_HEADER:
            raise UserError(f"{path.name} is no safetensors file whose header can be read.")
        tensors = json.loads(file.read(size))
    tensors.pop("__metadata__", None)
    return tensors


def _belongs(key: str, linear: str) -> bool:
    return key.startswith(f"{linear}.") and not key.endswith(".comfy_quant")


def _bytes(entry: dict) -> int:
    start, end = entry["data_offsets"]
    return end - start
