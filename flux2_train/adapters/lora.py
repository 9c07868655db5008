"""peft's LoRA on ComfyUI's Linears, without touching them.

peft renames what it wraps and refuses ComfyUI's quantised Linears. So it wraps a shadow: a tree of Linears with
the model's names and sizes but no weights. What peft adds there is trained; ``deltas`` computes its contribution.
"""

from __future__ import annotations

from collections.abc import Callable

import peft
import torch
import torch.nn.functional as F
from torch import Tensor, nn

NAME = "default"


class WeightlessLinear(nn.Linear):
    """Sizes of a Linear and nothing else; its empty weight tells peft device and dtype."""

    def __init__(self, in_features: int, out_features: int, device: torch.device):
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = in_features, out_features, None
        self.weight = nn.Parameter(torch.empty(0, dtype=torch.float32, device=device), requires_grad=False)


def shadow(sizes: dict[str, tuple[int, int]], device: torch.device) -> nn.Module:
    """A module tree with a WeightlessLinear at every dotted name in ``sizes`` (in features, out features)."""
    root = nn.Module()
    for name, (into, out) in sizes.items():
        *parents, last = name.split(".")
        node = root
        for part in parents:
            if part not in node._modules:
                node.add_module(part, nn.Module())
            node = node._modules[part]
        node.add_module(last, WeightlessLinear(into, out, device))
    return root


class LoraAdapters(nn.Module):
    """LoRA adapters for named Linears: ``W x + alpha / rank * B A x``, master weights in fp32.

    ``A`` starts Kaiming-uniform from ``seed``, ``B`` at zero (Hu et al. 2021), both initialised by peft on the CPU,
    so a seed gives the same adapters on every device. ``enabled`` switches all of them off and on, which gives the
    base model for preservation. Call where autograd is on (``host.borrow.training_mode``).
    """

    def __init__(
        self,
        sizes: dict[str, tuple[int, int]],
        rank: int,
        alpha: float,
        seed: int,
        device: torch.device | str = "cpu",
    ):
        super().__init__()
        config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(sizes), inference_mode=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.tree = peft.inject_adapter_in_model(config, shadow(sizes, torch.device("cpu")), adapter_name=NAME)
        self.to(device)
        self.rank, self.alpha, self.names, self.enabled = rank, alpha, list(sizes), True

    def layer(self, name: str) -> nn.Module:
        """peft's LoraLayer at a Linear's name."""
        return self.tree.get_submodule(name)

    def trainable(self) -> list[nn.Parameter]:
        """The parameters the optimizer updates, in a fixed order."""
        return [p for p in self.parameters() if p.requires_grad]

    def deltas(self) -> dict[str, Callable[[Tensor], Tensor | None]]:
        """For each Linear the function that gives its adapter's contribution to the output, ``None`` while disabled."""
        return {name: self._delta(self.layer(name)) for name in self.names}

    def _delta(self, layer: nn.Module) -> Callable[[Tensor], Tensor | None]:
        down, up, scale = layer.lora_A[NAME], layer.lora_B[NAME], layer.scaling[NAME]

        def delta(x: Tensor) -> Tensor | None:
            if not self.enabled:
                return None
            # fp32 masters, computed in the model's own dtype
            return F.linear(F.linear(x, down.weight.to(x.dtype)), up.weight.to(x.dtype)) * scale

        return delta

    def matrices(self) -> dict[str, tuple[Tensor, Tensor, float]]:
        """By Linear name: A (rank, in), B (out, rank) as fp32 on the CPU, and the scale alpha / rank."""
        found = {}
        for name in self.names:
            layer = self.layer(name)
            down, up = (part[NAME].weight.detach().float().cpu().clone() for part in (layer.lora_A, layer.lora_B))
            found[name] = (down, up, layer.scaling[NAME])
        return found
