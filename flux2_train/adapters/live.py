"""peft's adapters on ComfyUI's Linears, without touching them.

peft renames what it wraps and refuses ComfyUI's quantised Linears. So it wraps a shadow: a tree of Linears with
the model's names and sizes but no weights. What peft adds to the shadow is trained; ``deltas`` computes what that adds
to the model's own Linears.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..settings.adapter import AdapterSettings
from .library import peft
from .parts import Base, Delta, Factors, Hadamard, Kronecker, LowRank, Part, PlainLora, mapped
from .sums import Divisor, Sum, decomposed, divisor, scalar

NAME = "default"


@dataclass(frozen=True)
class Site:
    """A Linear that gets an adapter, with the adapter's rank and alpha."""

    in_features: int
    out_features: int
    rank: int
    alpha: float


class WeightlessLinear(nn.Linear):
    """A Linear without memory for its weight, which is a single zero expanded to (out, in): peft reads its shape."""

    def __init__(self, in_features: int, out_features: int):
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = in_features, out_features, None
        self.weight = nn.Parameter(torch.zeros(1).expand(out_features, in_features), requires_grad=False)


def shadow(sites: dict[str, Site]) -> nn.Module:
    """A module tree with a WeightlessLinear at every dotted name."""
    root = nn.Module()
    for name, site in sites.items():
        *parents, last = name.split(".")
        node = root
        for part in parents:
            if part not in node._modules:
                node.add_module(part, nn.Module())
            node = node._modules[part]
        node.add_module(last, WeightlessLinear(site.in_features, site.out_features))
    return root


def peft_config(sites: dict[str, Site], config: AdapterSettings) -> peft.PeftConfig:
    """peft's configuration: every site by its full name, with its own rank and alpha."""
    ranks = {re.escape(name): site.rank for name, site in sites.items()}
    alphas = {re.escape(name): site.alpha for name, site in sites.items()}
    common = {"target_modules": list(sites), "rank_pattern": ranks, "alpha_pattern": alphas}
    match config.kind:
        case "lora":
            lora = peft.LoraConfig(use_rslora=config.rslora, **common)
            # Without this peft asks every quantisation library it knows whether the layer is one of its own, and a
            # library that is too old or broken (torchao) then raises ImportError.
            lora._register_custom_module({WeightlessLinear: peft.tuners.lora.Linear})
            return lora
        case "loha":
            return peft.LoHaConfig(**common)
        case "lokr":
            return peft.LoKrConfig(
                decompose_factor=config.lokr_factor, decompose_both=config.lokr_decompose_both, **common
            )


class Adapters(nn.Module):
    """Adapters for named Linears, master weights in fp32: LoRA, DoRA, LoHa or LoKr as ``config`` says.

    peft initialises them on the CPU from ``seed``, so that a seed gives the same adapters on every device, and so that
    they change nothing at first. ``device`` may be a function of a Linear's name. DoRA also needs ``row_norms``: the L2
    norm of every row of a Linear's weight (out,). With ``enabled`` False, or at strength 0, all of them do nothing,
    which gives the base model for preservation. Dropout acts in ``train`` mode only. Create them where autograd is on
    (``host.borrowed.borrow.training_mode``).
    """

    def __init__(
        self,
        sites: dict[str, Site],
        config: AdapterSettings,
        seed: int,
        device: torch.device | str | Callable[[str], torch.device] = "cpu",
        row_norms: Callable[[str], Tensor] | None = None,
    ):
        super().__init__()
        self.sites, self.config, self.names, self.enabled = sites, config, list(sites), True
        self.divisors: dict[str, Divisor] | None = None  # DoRA's, while they are kept
        self.casts: dict[torch.dtype, dict[str, tuple[Tensor, Tensor]]] | None = None  # LoRA's matrices, while kept
        self.of_thread = threading.local()  # passes of several threads run at once, each at its own strength
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.tree = peft.inject_adapter_in_model(peft_config(sites, config), shadow(sites), adapter_name=NAME)
        self.magnitudes = nn.ParameterDict()
        if config.dora:
            self.magnitudes.update({_key(name): nn.Parameter(row_norms(name).float().cpu()) for name in sites})
        self._place(device if callable(device) else lambda _: device)
        self.eval()

    def _place(self, device: Callable[[str], torch.device | str]) -> None:
        where = {id(p): device(name) for name in self.names for p in self.of_layer(name)}
        for module in self.modules():  # not self.to: that would fill the shadow's weights
            for name, p in module.named_parameters(recurse=False):
                if p.requires_grad:
                    module._parameters[name] = nn.Parameter(p.detach().to(where[id(p)]))

    def layer(self, name: str) -> nn.Module:
        """peft's layer at a Linear's name."""
        return self.tree.get_submodule(name)

    def magnitude(self, name: str) -> nn.Parameter:
        """DoRA's magnitudes (out,) at a Linear's name."""
        return self.magnitudes[_key(name)]

    def of_layer(self, name: str) -> list[nn.Parameter]:
        """The trainable parameters at a Linear's name."""
        magnitude = [self.magnitude(name)] if self.config.dora else []
        return [p for p in self.layer(name).parameters() if p.requires_grad] + magnitude

    def kept(self, name: str) -> int:
        """Numbers per token that the adapter at a Linear keeps for backward beside its input."""
        site = self.sites[name]
        match self.config.kind:
            case "loha":
                return 0
            case "lokr":
                part = self.part(name, torch.float32)
                return part.left[-1].shape[1] * part.right[0].shape[0]
        return site.rank + (2 * site.out_features if self.config.dora else 0)

    @property
    def draws(self) -> bool:
        """Whether dropout acts at the moment, which draws random numbers in every pass."""
        return bool(self.config.dropout) and self.training

    def trainable(self) -> list[nn.Parameter]:
        """The parameters the optimizer updates, in a fixed order."""
        return [p for p in self.parameters() if p.requires_grad]

    def masters(self) -> dict[str, nn.Parameter]:
        """The same parameters by name, as a checkpoint holds them."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def groups(self, learning_rate: float) -> list[dict]:
        """The optimizer's parameter groups. With LoRA+ (Hayou et al. 2024) B learns ``lora_plus`` times faster."""
        if self.config.lora_plus == 1:
            return [{"params": self.trainable(), "lr": learning_rate}]
        faster = [self.layer(name).lora_B[NAME].weight for name in self.names]
        ids = {id(p) for p in faster}
        others = [p for p in self.trainable() if id(p) not in ids]
        return [
            {"params": others, "lr": learning_rate},
            {"params": faster, "lr": learning_rate * self.config.lora_plus},
        ]

    def part(self, name: str, dtype: torch.dtype) -> Part:
        """The adapter of a Linear as it is now, differentiable in its parameters, computed in ``dtype``."""
        layer = self.layer(name)

        def at(*kinds: str) -> tuple[Tensor, ...]:
            holders = [getattr(layer, kind) for kind in kinds]
            return tuple(_weight(holder[NAME]).to(dtype) for holder in holders if NAME in holder)

        scale = layer.scaling[NAME]
        match self.config.kind:
            case "lora":
                return LowRank(*at("lora_A", "lora_B"), scale, self.magnitude(name) if self.config.dora else None)
            case "loha":
                return Hadamard(*at("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"), scale)
            case "lokr":
                left, right = (at(f"lokr_{w}") or at(f"lokr_{w}_a", f"lokr_{w}_b") for w in ("w1", "w2"))
                return Kronecker(left, right, scale)

    @torch.no_grad()
    def parts(self) -> dict[str, Part]:
        """All adapters as fp32 copies on the CPU, by Linear name."""
        return {name: mapped(self.part(name, torch.float32), lambda t: t.cpu().clone()) for name in self.names}

    def deltas(self) -> dict[str, Delta]:
        """By Linear name a function that gives what to add to the base's output: see ``parts.Delta``."""
        return {name: _LiveDelta(self, name) for name in self.names}

    @property
    def strength(self) -> float:
        """What the adapters add is multiplied by this in the calling thread."""
        return getattr(self.of_thread, "strength", 1.0)

    @contextmanager
    def at_strength(self, strength: float) -> Iterator[None]:
        """Multiply what the adapters add in this thread by ``strength`` inside; 0 is the base model bit for bit."""
        before, self.of_thread.strength = self.strength, strength
        try:
            yield
        finally:
            self.of_thread.strength = before

    @property
    def off(self) -> bool:
        """Whether the adapters add nothing at the moment."""
        return not self.enabled or not self.strength

    def _scaled(self, name: str, x: Tensor, y: Tensor, base: Base) -> Tensor | None:
        if self.off:
            return None
        delta = self._delta(name, x, y, base)
        return delta if self.strength == 1 else delta * self.strength

    def _delta(self, name: str, x: Tensor, y: Tensor, base: Base) -> Tensor:
        dtype = torch.float32 if self.config.compute == "fp32" else x.dtype
        part, inputs = self.part(name, dtype), x.to(dtype)
        if self.config.dropout:
            inputs = F.dropout(inputs, self.config.dropout, self.training)
        if self.config.dora:
            return decomposed(part, inputs, y, *self._divisor(name, part, base, x.device)).to(y.dtype)
        if self.config.kind == "loha" and torch.is_grad_enabled():  # or autograd would keep dW, as large as W
            return checkpoint(part, inputs, use_reentrant=False).to(y.dtype)
        return part(inputs).to(y.dtype)

    def _divisor(self, name: str, part: LowRank, base: Base, device: torch.device) -> Divisor:
        if self.divisors is None:
            return divisor(part, base, device)
        if name not in self.divisors:
            self.divisors[name] = divisor(part, base, device)
        return self.divisors[name]

    @contextmanager
    def unchanging(self) -> Iterator[None]:
        """Inside, no weight changes, and what follows from weights alone is computed once and not in every pass.

        These are DoRA's norms, and LoRA's matrices in the dtype of computation.
        """
        self.divisors, self.casts = {}, {}
        try:
            yield
        finally:
            self.divisors = self.casts = None

    def cast(self, name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A LoRA's ``down`` and ``up`` in ``dtype``, without gradients; the parameters themselves if they have it."""
        pair = self._matrices(name)
        if pair[0].dtype == dtype:
            return pair
        with torch.no_grad():
            if self.casts is None:
                return tuple(matrix.to(dtype) for matrix in pair)
            if dtype not in self.casts:
                self.casts[dtype] = self._all_cast(dtype)
            return self.casts[dtype][name]

    def _all_cast(self, dtype: torch.dtype) -> dict[str, tuple[Tensor, Tensor]]:
        """Every LoRA's matrices in ``dtype``, written by as few kernels as the device can."""
        masters = [matrix for name in self.names for matrix in self._matrices(name)]
        copies = [torch.empty_like(matrix, dtype=dtype, requires_grad=False) for matrix in masters]
        torch._foreach_copy_(copies, masters)
        return dict(zip(self.names, zip(copies[::2], copies[1::2], strict=True), strict=True))

    def _matrices(self, name: str) -> tuple[Tensor, Tensor]:
        layer = self.layer(name)
        return layer.lora_A[NAME].weight, layer.lora_B[NAME].weight

    @contextmanager
    def dropping(self, seed: int, step: int) -> Iterator[None]:
        """Dropout is on inside, drawn from the step's own seed: a resumed run draws the same, nothing else changes."""
        if not self.config.dropout:
            yield
            return
        devices = sorted({p.device.index for p in self.trainable() if p.device.type == "cuda"})
        self.train()
        try:
            with torch.random.fork_rng(devices=devices):
                torch.manual_seed(seed * 1_000_003 + step)
                yield
        finally:
            self.eval()


class _LiveDelta(PlainLora):
    """What the adapter of one Linear adds at the moment; see ``Adapters.deltas``."""

    def __init__(self, adapters: Adapters, name: str):
        self.adapters, self.name, self.layer = adapters, name, adapters.layer(name)
        self.reads_output = adapters.config.dora
        self.plain = adapters.config.kind == "lora" and not adapters.config.dora

    def __call__(self, x: Tensor, y: Tensor, base: Base) -> Tensor | None:
        return self.adapters._scaled(self.name, x, y, base)

    def parameters(self) -> tuple[Tensor, Tensor]:
        """See ``PlainLora``."""
        return self.adapters._matrices(self.name)

    def cast(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """See ``PlainLora``."""
        return self.adapters.cast(self.name, dtype)

    def factors(self, dtype: torch.dtype) -> Factors | None:
        """See ``PlainLora``. None also for dropout, and for an adapter in fp32 beside a layer that is not."""
        adapters = self.adapters
        if adapters.off or not self.fuses(dtype) or adapters.draws:
            return None
        return Factors(*self.cast(dtype), self.layer.scaling[NAME] * adapters.strength)

    def fuses(self, dtype: torch.dtype) -> bool:
        """See ``PlainLora``."""
        return self.plain and (self.adapters.config.compute != "fp32" or dtype == torch.float32)

    @property
    def uncompiled(self) -> str:
        """See ``PlainLora``."""
        config = self.adapters.config
        if config.dropout:
            return "LoRA dropout draws random numbers, which a recomputation has to draw again"
        large = "LoHa's products are as large as the weights, and a compiled block would keep them"
        return large if config.kind == "loha" else ""

    def sum_of(self, dtype: torch.dtype, device: torch.device, base: Base) -> Sum | None:
        """See ``PlainLora``."""
        adapters = self.adapters
        if adapters.off:
            return None
        dtype = torch.float32 if adapters.config.compute == "fp32" else dtype
        part = adapters.part(self.name, dtype)
        norm, bias = adapters._divisor(self.name, part, base, device) if adapters.config.dora else (None, None)
        return Sum(replace(part, scale=scalar(part.scale)), dtype, scalar(adapters.strength), norm, bias)


def _key(name: str) -> str:
    """A Linear's name without dots, which names of parameters may not have."""
    return name.replace(".", "/")


def _weight(holder: nn.Module | Tensor) -> Tensor:
    return holder.weight if isinstance(holder, nn.Module) else holder
