"""Proof that a saved LoRA acts: what ComfyUI's own loader adds to every layer, against the adapter that was trained.

Both are computed beside one prediction, from the very input that each layer gets in it. The base takes no part in the
difference, so a base that quantises its activations, and answers the last digit with a jump, does not blur it; and one
wrong layer of many shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import comfy.lora
import comfy.lora_convert
import comfy.utils
import torch
import torch.nn.functional as F
from comfy.weight_adapter.bypass import BypassForwardHook
from torch import Tensor, nn

from ...adapters import peft_config, read, write
from ...adapters.dora import is_dora
from ...adapters.parts import Base, Delta, Hadamard, Kronecker, Part, size_of
from ...errors import UserError
from ..borrowed.borrow import borrow, linears
from ..borrowed.velocity import Condition, velocity
from ..identify import flavour_name
from . import apply as lora

# The largest relative error of a number rounded to that precision.
ROUNDOFF = {name: torch.finfo(dtype).eps / 2 for name, dtype in write.DTYPES.items()}
ARITHMETIC = 1e-3  # two ways in fp32 to a difference that may be a ten thousandth of the weights
LARGEST_LATENT = 16  # tokens per side: a certificate costs one small forward


@dataclass(frozen=True)
class Probe:
    """The prediction beside which is compared: ``x_t`` (1, 128, h, w) at time ``t`` (1,) under a condition."""

    x_t: Tensor
    t: Tensor
    condition: Condition


@dataclass(frozen=True)
class Certificate:
    """``matched`` of ``total`` layers were found by the loader ``through``.

    ``effect`` is ``<file, live> / |live|^2`` of what the file and the live adapter add, over all layers together;
    ``error`` is ``|file - live| / |live|`` at ``layer``, where it is largest, and ``tolerance`` what rounding to the
    file's precision can do to it.
    """

    matched: int
    total: int
    effect: float
    error: float
    tolerance: float
    layer: str
    through: str

    def __str__(self) -> str:
        off = "" if self.holds else f", off by {self.error:.1%} at {self.layer}"
        return f"{self.matched}/{self.total} keys, effect {self.effect:.2f} ({self.through}){off}"

    @property
    def holds(self) -> bool:
        """Every layer was found, and none is further off than its precision explains."""
        return self.matched == self.total and self.error <= self.tolerance


def certify(
    model, deltas: dict[str, Delta], parts: dict[str, Part], path: Path, probe: Probe, precision: str
) -> Certificate:
    """Load ``path`` back and compare what it adds to every layer with what the live adapters ``deltas`` add.

    ``parts`` are those that were written, in ``precision`` (write.DTYPES). The loader is ComfyUI's bypass, which acts
    on any storage format; its merging for DoRA, which the stock bypass would drop; LoRA Apply where neither can carry
    the file (DoRA on a quantised model or in peft's keys, peft's folder). The model is left as it was, offloaded or
    not. Raises nothing: look at ``holds``.
    """
    found, through = _load(model, parts, path)
    rows: dict[str, _Row] = {}

    def compared(name: str, live: Delta) -> Delta:
        def delta(x: Tensor, y: Tensor, base: Base) -> Tensor | None:
            exact = _exact(x, parts[name], base)
            wanted = live(*exact, base)
            rows[name] = _compare(found[name](*exact, base) if name in found else torch.zeros_like(wanted), wanted)
            return live(x, y, base)

        return delta

    with torch.inference_mode(), borrow(model, {n: compared(n, d) for n, d in deltas.items()}) as borrowed:
        device = borrowed.load_device
        velocity(borrowed, probe.x_t.to(device), probe.t.to(device), [probe.condition])
    worst = max(rows, key=lambda name: rows[name].error)
    along, square = (sum(getattr(row, part) for row in rows.values()) for part in ("along", "square"))
    effect = along / square if square else 1.0  # of what has learned nothing
    tolerance = max(map(_factors, parts.values())) * ROUNDOFF[precision] + ARITHMETIC
    return Certificate(len(found), len(parts), effect, rows[worst].error, tolerance, worst, through)


def require(certificate: Certificate, model, parts: dict[str, Part], path: Path) -> None:
    """Raise UserError naming what differs unless the certificate holds."""
    if certificate.holds:
        return
    raise UserError(
        f"{path.name} does not act like the adapter that was trained: {certificate}, where rounding explains "
        f"{certificate.tolerance:.1%}. {_differences(model, parts, path)} The file is kept; please report this."
    )


def _factors(part: Part) -> int:
    """Of how many rounded matrices what a part adds is the product."""
    match part:
        case Hadamard():
            return 4
        case Kronecker():
            return len(part.left) + len(part.right)
    return 2


def _exact(x: Tensor, part: Part, base: Base) -> tuple[Tensor, Tensor]:
    """A layer's input in fp32, and what the base makes of it in fp32 where the part depends on that."""
    x = x.float()
    if not is_dora(part):
        return x, x.new_zeros(*x.shape[:-1], size_of(part)[1])
    with base(torch.float32, x.device) as (weight, bias):
        return x, F.linear(x, weight, bias)


@dataclass(frozen=True)
class _Row:
    """One layer compared: ``<file, live>``, ``|live|^2``, ``|file - live|^2``."""

    along: float
    square: float
    missed: float

    @property
    def error(self) -> float:
        """What has learned nothing yet must do nothing either."""
        return (self.missed / self.square) ** 0.5 if self.square else math.inf if self.missed else 0.0


def _compare(found: Tensor, live: Tensor) -> _Row:
    found, live = found.double(), live.double()
    products = ((found * live).sum(), live.square().sum(), (found - live).square().sum())
    return _Row(*(product.item() for product in products))


# What a layer's output gains, from its input x (..., in), the base's output y (..., out) and the base.
Contribution = Callable[[Tensor, Tensor, Base], Tensor]


def _load(model, parts: dict[str, Part], path: Path) -> tuple[dict[str, Contribution], str]:
    """What the file adds, by Linear name, and which loader says so."""
    decomposed, layers = any(map(is_dora, parts.values())), linears(model)
    loaded = read.load(path)
    pefts = path.name == peft_config.FILE or any(write.VECTOR in key for key in loaded)
    if pefts or (decomposed and lora.is_quantised(model)):
        loaded = lora.read(model, loaded, allow_unmatched=True)
        return {name: _applied(layers[name], part) for name, part in loaded.parts.items()}, "LoRA Apply"
    tensors = comfy.utils.load_torch_file(str(path), safe_load=True, device=model.load_device)
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    found = comfy.lora.load_lora(comfy.lora_convert.convert_lora(tensors), keys, log_missing=False)
    through = _merged if decomposed else _bypassed
    stock = {lora.layer_name(key): through(layers[lora.layer_name(key)], key, patch) for key, patch in found.items()}
    return stock, f"stock loader, {'merged' if decomposed else 'bypass'}"


def _applied(layer: nn.Module, part: Part) -> Contribution:
    hook = lora.Contribution(part, 1.0)
    return lambda x, y, base: hook(layer, (x,), y) - y


def _bypassed(layer: nn.Module, key: str, adapter) -> Contribution:
    BypassForwardHook(layer, adapter)  # tells the adapter what it sits on; nothing is put in
    return lambda x, y, base: adapter.h(x, y)


def _merged(layer: nn.Module, key: str, patch) -> Contribution:
    """By the weight that ComfyUI computes in fp32, before it is rounded to how the model is stored."""

    def contribution(x: Tensor, y: Tensor, base: Base) -> Tensor:
        with base(torch.float32, x.device) as (weight, _):
            changed = comfy.lora.calculate_weight([(1.0, patch, 1.0, None, None)], weight.clone(), key)
            return F.linear(x, changed - weight)

    return contribution


def _differences(model, parts: dict[str, Part], path: Path) -> str:
    """What is wrong with the file layer by layer, as far as the file itself tells."""
    found, _ = read.read(read.load(path), lora.sizes(model), flavour_name(model))
    if missing := [name for name in parts if name not in found]:
        return f"It lacks {len(missing)} layers ({', '.join(missing[:3])})."
    generator = torch.Generator().manual_seed(0)
    other = []
    for name, part in parts.items():
        x = torch.randn(4, size_of(part)[0], generator=generator)
        wanted, got = part(x), found[name](x)
        if (got - wanted).norm() > 0.02 * wanted.norm():
            other.append(name)
    if other:
        return f"{len(other)} layers in it have other numbers ({', '.join(other[:3])})."
    kinds = ", ".join(sorted({write.kind(part) for part in parts.values()}))
    return f"Every layer in it has the right numbers, so this ComfyUI's loader reads {kinds} otherwise."
