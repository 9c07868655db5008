"""Proof that a saved LoRA acts as trained: what ComfyUI's own loader adds to each layer is compared with the adapter.

Both are computed during one prediction, from the input that each layer gets in it. The base's output takes no part in
the comparison: a base that quantises its activations, where rounding can turn a tiny difference into a jump, does not
disturb it. A single wrong layer among many is noticed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import comfy.lora
import comfy.lora_convert
import comfy.utils
import torch
import torch.nn.functional as F
from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter.bypass import BypassForwardHook
from torch import Tensor, nn

from ...adapters import peft_config, read, write
from ...adapters.dora import is_dora, needs_weight
from ...adapters.parts import Base, Delta, Hadamard, Kronecker, Part, mapped, size_of
from ...errors import UserError
from ...names import counted
from ..borrowed.borrow import borrow, linears
from ..borrowed.velocity import Condition, velocity
from ..identify import flavour_name
from . import apply as lora

# The largest relative error of a number rounded to that precision.
ROUNDOFF = {name: torch.finfo(dtype).eps / 2 for name, dtype in write.DTYPES.items()}
ARITHMETIC = 1e-3  # rounding between two fp32 computations of a change that may be 1/10,000 of the weights
LARGEST_LATENT = 16  # tokens per side: a certificate costs one small forward
DRAWS = 8  # of random rounding errors, each up to the largest that a number can have


@dataclass(frozen=True)
class Probe:
    """Inputs of the prediction during which layers are compared: ``x_t`` (1, 128, h, w) at time ``t`` (1,)."""

    x_t: Tensor
    t: Tensor
    condition: Condition


@dataclass(frozen=True)
class Certificate:
    """The loader ``through`` found ``matched`` of ``total`` layers.

    With ``file`` and ``live`` for what the file and the live adapter add: ``effect`` is ``<file, live> / |live|^2``
    over all layers together, ``error`` is ``|file - live| / |live|`` at ``layer``, and ``tolerance`` is the largest
    error that rounding to the file's precision explains there. It is the layer whose error is the most of that.
    """

    matched: int
    total: int
    effect: float
    error: float
    tolerance: float
    layer: str
    through: str

    def __str__(self) -> str:
        found = f"all {self.total}" if self.matched == self.total else f"{self.matched} of {self.total}"
        off = "" if self.holds else f", off by {self.error:.1%} at {self.layer}"
        return f"loaded back by {self.through}: {found} layers, {self.effect:.0%} of the trained strength{off}"

    @property
    def holds(self) -> bool:
        """Whether every layer was found, and no error is larger than rounding explains."""
        return self.matched == self.total and self.error <= self.tolerance


def certify(
    model: ModelPatcher, deltas: dict[str, Delta], parts: dict[str, Part], path: Path, probe: Probe, precision: str
) -> Certificate:
    """Load ``path`` back and compare what it adds to every layer with what the live adapters ``deltas`` add.

    ``parts`` are those that were written, in ``precision`` (write.DTYPES). The loader is ComfyUI's bypass, which works
    with any storage format; ComfyUI's merging for DoRA, which its bypass would drop; or LoRA Apply if neither can load
    the file (DoRA on a quantised model, peft's keys, peft's folder). The model is left as it was, offloaded or not.
    A difference raises nothing: the caller looks at ``holds``.
    """
    loaded, through = _load(model, parts, path)
    rows: dict[str, _Row] = {}
    roundoff = ROUNDOFF[precision]

    def comparing(name: str, live: Delta) -> Delta:
        def delta(x: Tensor, y: Tensor, base: Base) -> Tensor | None:
            exact = _exact(x, parts[name], base)
            wanted = live(*exact, base)
            added = loaded[name](*exact, base) if name in loaded else torch.zeros_like(wanted)
            row = _compare(added, wanted, _factors(parts[name]) * roundoff + ARITHMETIC)
            if not row.holds and row.square and not needs_weight(parts[name]):
                explained = _rounding(parts[name], exact[0], precision) + ARITHMETIC
                row = replace(row, tolerance=max(row.tolerance, explained))
            rows[name] = row
            return live(x, y, base)

        return delta

    with torch.inference_mode(), borrow(model, {n: comparing(n, d) for n, d in deltas.items()}) as borrowed:
        device = borrowed.load_device
        velocity(borrowed, probe.x_t.to(device), probe.t.to(device), [probe.condition])
    worst = max(rows, key=lambda name: rows[name].error / rows[name].tolerance)
    along, square = (sum(getattr(row, part) for row in rows.values()) for part in ("along", "square"))
    effect = along / square if square else 1.0  # square is 0 if nothing was learned
    return Certificate(len(loaded), len(parts), effect, rows[worst].error, rows[worst].tolerance, worst, through)


def require(certificate: Certificate, model: ModelPatcher, parts: dict[str, Part], path: Path) -> None:
    """Raise UserError that says what differs, unless the certificate holds."""
    if certificate.holds:
        return
    raise UserError(
        f"{path.name} does not act like the adapter that was trained: {certificate}, where rounding explains "
        f"{certificate.tolerance:.1%}. {_differences(model, parts, path)} The file is kept; please report this."
    )


def _rounding(part: Part, x: Tensor, precision: str) -> float:
    """The largest ``|error| / |added|`` that rounding a part's numbers to ``precision`` explains.

    Usually it is less than the number of factors times the roundoff. Two things make it larger. Where inputs are nearly
    orthogonal to a low rank, the terms of each sum cancel, but not their errors: random errors show that. Where a LoRA
    was trained from a file of that precision, a few small updates are lost in rounding, and they all point along the
    inputs: rounding the numbers as they are shows that.
    """
    x = x.to("cpu")  # where the parts are that are written
    generator, exact = torch.Generator().manual_seed(0), part(x)

    def rounded(tensor: Tensor) -> Tensor:
        return tensor.to(write.DTYPES[precision]).to(tensor)

    def disturbed(tensor: Tensor) -> Tensor:
        error = 2 * torch.rand(tensor.shape, generator=generator) - 1
        return tensor * (1 + ROUNDOFF[precision] * error.to(tensor))

    errors = [(mapped(part, change)(x) - exact).norm().item() for change in (rounded, *[disturbed] * DRAWS)]
    return max(errors) / exact.norm().item()


def _factors(part: Part) -> int:
    """How many rounded matrices are multiplied in what a part adds."""
    match part:
        case Hadamard():
            return 4
        case Kronecker():
            return len(part.left) + len(part.right)
    return 2


def _exact(x: Tensor, part: Part, base: Base) -> tuple[Tensor, Tensor]:
    """A layer's input in fp32, and the base's output for it in fp32; zeros unless the part is DoRA, which needs it."""
    x = x.float()
    if not is_dora(part):
        return x, x.new_zeros(*x.shape[:-1], size_of(part)[1])
    with base(torch.float32, x.device) as (weight, bias):
        return x, F.linear(x, weight, bias)


@dataclass(frozen=True)
class _Row:
    """One layer's comparison: ``<file, live>``, ``|live|^2``, ``|file - live|^2``, and the largest allowed error."""

    along: float
    square: float
    missed: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether the error is allowed."""
        return self.error <= self.tolerance

    @property
    def error(self) -> float:
        """``|file - live| / |live|``; if the adapter adds nothing, the file must add nothing, else this is infinite."""
        return (self.missed / self.square) ** 0.5 if self.square else math.inf if self.missed else 0.0


def _compare(file: Tensor, live: Tensor, tolerance: float) -> _Row:
    file, live = file.double(), live.double()
    products = ((file * live).sum(), live.square().sum(), (file - live).square().sum())
    return _Row(*(product.item() for product in products), tolerance)


# Gives what is added to a layer's output, from its input x (..., in), the base's output y (..., out) and the base.
Contribution = Callable[[Tensor, Tensor, Base], Tensor]


def _load(model: ModelPatcher, parts: dict[str, Part], path: Path) -> tuple[dict[str, Contribution], str]:
    """What the file adds, by Linear name, and the name of the loader that computes it."""
    decomposed, layers = any(map(is_dora, parts.values())), linears(model)
    own_tensors = read.load(path)
    is_pefts = path.name == peft_config.FILE or any(write.VECTOR in key for key in own_tensors)
    if is_pefts or (decomposed and lora.is_quantised(model)):
        loaded = lora.read(model, own_tensors, allow_unmatched=True)
        return {name: _applied(layers[name], part) for name, part in loaded.parts.items()}, "LoRA Apply"
    tensors = comfy.utils.load_torch_file(str(path), safe_load=True, device=model.load_device)
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    patches = comfy.lora.load_lora(comfy.lora_convert.convert_lora(tensors), keys, log_missing=False)
    through = _merged if decomposed else _bypassed
    stock = {lora.layer_name(key): through(layers[lora.layer_name(key)], key, patch) for key, patch in patches.items()}
    return stock, f"ComfyUI's LoRA loader{' (merged)' if decomposed else ''}"


def _applied(layer: nn.Module, part: Part) -> Contribution:
    hook = lora.Contribution(part, 1.0)
    return lambda x, y, base: hook(layer, (x,), y) - y


def _bypassed(layer: nn.Module, key: str, adapter) -> Contribution:
    BypassForwardHook(layer, adapter)  # its constructor tells the adapter about the layer; it is not injected
    return lambda x, y, base: adapter.h(x, y)


def _merged(layer: nn.Module, key: str, patch) -> Contribution:
    """The difference that merging makes, in fp32, before ComfyUI rounds the weight to the model's storage format."""

    def contribution(x: Tensor, y: Tensor, base: Base) -> Tensor:
        with base(torch.float32, x.device) as (weight, _):
            changed = comfy.lora.calculate_weight([(1.0, patch, 1.0, None, None)], weight.clone(), key)
            return F.linear(x, changed - weight)

    return contribution


def _differences(model: ModelPatcher, parts: dict[str, Part], path: Path) -> str:
    """A sentence on what is wrong in the file: missing layers, other numbers, or neither."""
    in_file, _ = read.read(read.load(path), lora.sizes(model), flavour_name(model))
    if missing := [name for name in parts if name not in in_file]:
        return f"It lacks {counted(len(missing), 'layer')} ({', '.join(missing[:3])})."
    generator = torch.Generator().manual_seed(0)
    wrong = []
    for name, part in parts.items():
        x = torch.randn(4, size_of(part)[0], generator=generator)
        wanted, got = part(x), in_file[name](x)
        if (got - wanted).norm() > 0.02 * wanted.norm():
            wrong.append(name)
    if wrong:
        return f"{counted(len(wrong), 'layer in it has', 'layers in it have')} other numbers ({', '.join(wrong[:3])})."
    kinds = ", ".join(sorted({write.kind(part) for part in parts.values()}))
    return f"Every layer in it has the right numbers, so this ComfyUI's loader reads {kinds} otherwise."
