"""One row per precision: how weights can be stored, and what each way needs and costs.

Menus, loading, quantising, the planner and the doctor read all they know of a precision from its row, so a new
precision is one row here. dtypes are strings: this module imports neither torch nor ComfyUI.
"""

from __future__ import annotations

from dataclasses import dataclass, field

AS_IN_FILE = "as in file"  # weights stay as the file has them
PLANNED = "auto"  # runs/precision.py chooses the precision


@dataclass(frozen=True)
class Format:
    """How ComfyUI quantises: the format's name in files and the options of its quantiser.

    ``rotated``: rows are multiplied with a Hadamard matrix first. ``multiple``: the length of a row must be a multiple
    of it. ``largest``: where the format has one scale for the matrix, the stored value of the matrix's largest number.
    ``dtype``: a dtype that the format needs and older versions of torch lack.
    """

    name: str
    options: dict[str, object] = field(default_factory=dict)
    rotated: bool = False
    multiple: int = 1
    largest: float = 0.0
    dtype: str = ""


@dataclass(frozen=True)
class Precision:
    """One row.

    Bytes of a matrix (out, in): ``bits`` per weight; scales of one byte for each ``block`` of weights, ``per_row``
    bytes for each row and ``per_matrix`` bytes for the matrix.

    ``name``: what users choose.
    ``dtype``: of a plain precision, torch's name of the dtype that weights are cast to.
    ``format``, ``layout``: of a quantised precision; the layout is a part of the name of ComfyUI's class of tensors.
    ``dequantising``: bytes alive while a matrix is dequantised, for each byte of the result. They are the result and
    intermediate values, which comfy-kitchen keeps in fp32 and int32 where it has no kernel for the device
    (tests/host/borrowed/test_dequantising.py counts them).
    ``kernel``: name of the comfy-kitchen kernel that dequantises in one step, if there is one (CUDA 13).
    ``comfyui``, ``torch``: the oldest versions that have it; empty if every version that the pack runs on has it.
    ``preference``: 'auto' considers the rows with the smallest number of which one fits, and takes the fastest of them,
    the first in the table if several are equally fast. It never takes a row with 0.
    ``in_table``: the planner's table of cards tries it. ``suggested``: named in a message where another does not fit.
    """

    name: str
    bits: int
    block: int = 0
    per_row: int = 0
    per_matrix: int = 0
    dtype: str = ""
    format: Format | None = None
    layout: str = ""
    dequantising: int = 1
    kernel: str = ""
    comfyui: str = ""
    torch: str = ""
    preference: int = 0
    in_table: bool = False
    suggested: bool = False

    @property
    def computes(self) -> bool:
        """Whether a GPU computes with the weights as they are stored; if not they are dequantised on use."""
        return self.bits >= 16

    def stored_bytes(self, out: int, into: int) -> int:
        """Bytes of an (out, in) matrix with its scales."""
        weights = out * into
        blocks = weights // self.block if self.block else 0
        return weights * self.bits // 8 + blocks + self.per_row * out + self.per_matrix


ROWS = (
    Precision("bf16", 16, dtype="bfloat16", preference=1, in_table=True),
    Precision("fp16", 16, dtype="float16"),
    Precision("fp32", 32, dtype="float32"),
    Precision("fp8 (e4m3)", 8, dtype="float8_e4m3fn"),
    Precision(
        "fp8 (scaled)", 8, per_matrix=4, format=Format("float8_e4m3fn", largest=448.0), layout="FP8", dequantising=2,
        preference=1, in_table=True, suggested=True,
    ),
    Precision(
        "mxfp8", 8, block=32, format=Format("mxfp8", multiple=32, dtype="float8_e8m0fnu"), layout="MXFP8",
        dequantising=5, comfyui="0.18.2", torch="2.7", preference=2,
    ),
    Precision(
        "int8", 8, per_row=4, format=Format("int8_tensorwise", {"is_weight": True, "per_channel": True}),
        layout="INT8", dequantising=4, kernel="dequantize_int8_simple_dtype", comfyui="0.27.0", preference=2,
    ),
    Precision(
        "nvfp4", 4, block=16, per_matrix=4, format=Format("nvfp4", multiple=16, largest=448.0 * 6.0), layout="NVFP4",
        dequantising=4, kernel="dequantize_nvfp4", preference=3, in_table=True, suggested=True,
    ),
    Precision(
        "int4", 4, per_row=4, format=Format("convrot_w4a4", rotated=True, multiple=64), layout="W4A4",
        dequantising=8, comfyui="0.27.0", preference=4, suggested=True,
    ),
)  # fmt: skip

PRECISIONS: dict[str, Precision] = {row.name: row for row in ROWS}
DTYPES: dict[str, str] = {row.name: row.dtype for row in ROWS if not row.format}
FORMATS: dict[str, Format] = {row.name: row.format for row in ROWS if row.format}
COSTLIEST = max(ROWS, key=lambda row: row.dequantising).name  # stands for quantised weights whose format has no row
CHOICES = (AS_IN_FILE, *DTYPES, *FORMATS)  # what Load FLUX.2 offers if ComfyUI and torch are new enough for all


def tiers(rows: tuple[Precision, ...] = ROWS) -> list[tuple[str, ...]]:
    """Names of the rows that ``auto`` may take, in groups of equal preference, the preferred group first."""
    numbers = sorted({row.preference for row in rows if row.preference})
    return [tuple(row.name for row in rows if row.preference == number) for number in numbers]


def dequantising(precision: str) -> int:
    """``Precision.dequantising`` of the precision with that name; 1 for a name without a row, which is a plain cast."""
    return PRECISIONS[precision].dequantising if precision in PRECISIONS else 1


def of_layout(layout: str) -> str:
    """The precision whose tensors have the ComfyUI class of that name, empty if there is none.

    If several rows' ``layout`` are part of the name the longest counts: 'MXFP8' contains 'FP8'.
    """
    matching = [row for row in ROWS if row.layout and row.layout in layout]
    return max(matching, key=lambda row: len(row.layout)).name if matching else ""
