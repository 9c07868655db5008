"""One table, one row per precision: how weights can be stored, and what each way needs and costs.

Menus, loading, quantising, the planner and the doctor take what they know of a precision from its row, so that a new
one is one row here. dtypes are named by strings: this module imports neither torch nor ComfyUI.
"""

from __future__ import annotations

from dataclasses import dataclass, field

AS_IN_FILE = "as in file"  # stored as the file has them, whatever that is
PLANNED = "auto"  # a precision that runs.precision chooses


@dataclass(frozen=True)
class Format:
    """How ComfyUI quantises: the format's name in files, the options of its quantiser, and what divides its rows.

    ``rotated`` rows are multiplied with a Hadamard matrix first. ``largest`` is the value that a matrix's largest one
    becomes, where the format has one scale for the whole matrix; ``dtype`` is what torch must have for it, where not
    every torch that ComfyUI runs on has that.
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

    Bytes of a matrix (out, in): ``bits`` per weight, and scales of one byte for each ``block`` of weights, of
    ``per_row`` bytes for each row and of ``per_matrix`` bytes for the whole.

    ``name``: what users choose.
    ``dtype``: torch's name of what a plain precision is cast to.
    ``format``: of a quantised precision, with ``layout``, a part of the name of ComfyUI's class for its tensors.
    ``dequantising``: bytes alive while a matrix is dequantised, for each byte of the result: the result, and steps on
    the way to it, which comfy-kitchen takes in fp32 and int32 where it has no kernel for the device
    (tests/host/borrowed/test_dequantising.py counts them).
    ``kernel``: comfy-kitchen's name of the kernel that dequantises in one step, where it has one (CUDA 13).
    ``comfyui``, ``torch``: the oldest versions that have it, empty where all do that the pack runs on.
    ``preference``: 'auto' takes the fastest of the smallest number that fits, the first row of equally fast ones; it
    never takes a row with 0.
    ``in_table``: the planner's table of cards tries it. ``suggested``: named where another precision does not fit.
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
        """Whether a GPU computes with the weights as they are stored: the others are dequantised on use."""
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
CHOICES = (AS_IN_FILE, *DTYPES, *FORMATS)  # what Load FLUX.2 offers, where ComfyUI and torch have all of them


def tiers(rows: tuple[Precision, ...] = ROWS) -> list[tuple[str, ...]]:
    """Names of the rows that ``auto`` may take, those of equal preference together, the preferred ones first."""
    numbers = sorted({row.preference for row in rows if row.preference})
    return [tuple(row.name for row in rows if row.preference == number) for number in numbers]


def dequantising(precision: str) -> int:
    """``Precision.dequantising`` of that name; 1, a cast, for a name without a row."""
    return PRECISIONS[precision].dequantising if precision in PRECISIONS else 1


def of_layout(layout: str) -> str:
    """The precision whose tensors have a ComfyUI class of that name, empty where it is none of them.

    The longest part that is in it counts: 'MXFP8' holds 'FP8'.
    """
    found = [row for row in ROWS if row.layout and row.layout in layout]
    return max(found, key=lambda row: len(row.layout)).name if found else ""
