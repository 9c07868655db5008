"""What is trained: one file of weights, one latent, one text, one target; the same for every contender."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import torch
from safetensors.torch import save_file
from torch import Tensor

HEAD = 128
TEXT = 512  # tokens: ComfyUI pads shorter texts to it, so fewer are cut out behind the padding
TARGETS = {  # of peft, as regular expressions: what our preset "all" adapts, by diffusers' names
    "diffusers": r"transformer_blocks\.\d+\.(attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"
    r"|ff(_context)?\.linear_(in|out))|single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out)",
}


@dataclass(frozen=True)
class Problem:
    """Sizes of the model and of one step; ``tokens`` is a square number, of the image, ``text`` at most 512."""

    weights: str
    hidden: int = 1024
    double: int = 2
    single: int = 4
    context: int = 512
    tokens: int = 1024
    text: int = TEXT
    rank: int = 16
    dtype: str = "float32"
    device: str = "cpu"
    checkpointing: bool = False

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Problem:
        return cls(**json.loads(text))

    def inputs(self) -> tuple[Tensor, Tensor]:
        """The clean latent (1, 128, side, side) and the text (1, text, context), fp32 on the CPU."""
        g = torch.Generator().manual_seed(0)
        side = round(self.tokens**0.5)
        return torch.randn(1, HEAD, side, side, generator=g), torch.randn(1, self.text, self.context, generator=g)


def write_weights(problem: Problem) -> None:
    """A FLUX.2 transformer of these sizes with random weights, in ComfyUI's names."""
    g = torch.Generator().manual_seed(1)
    h, dtype = problem.hidden, getattr(torch, problem.dtype)
    weights = {
        f"{name}.weight": (torch.randn(out, into, generator=g) * into**-0.5).to(dtype)
        for name, out, into in _linears(problem)
    }
    weights |= {f"{name}.weight": torch.ones(HEAD, dtype=dtype) for name in _norms(problem)}
    assert weights["img_in.weight"].shape == (h, HEAD)
    save_file(weights, problem.weights, metadata={"format": "pt"})


def _linears(p: Problem) -> Iterable[tuple[str, int, int]]:
    h = p.hidden
    yield from (("img_in", h, HEAD), ("txt_in", h, p.context))
    yield from (("time_in.in_layer", h, 256), ("time_in.out_layer", h, h))
    yield from ((f"double_stream_modulation_{s}.lin", 6 * h, h) for s in ("img", "txt"))
    yield "single_stream_modulation.lin", 3 * h, h
    for i in range(p.double):
        for s in ("img", "txt"):
            at = f"double_blocks.{i}.{s}_"
            yield from ((f"{at}attn.qkv", 3 * h, h), (f"{at}attn.proj", h, h))
            yield from ((f"{at}mlp.0", 6 * h, h), (f"{at}mlp.2", h, 3 * h))
    for i in range(p.single):
        yield from ((f"single_blocks.{i}.linear1", 9 * h, h), (f"single_blocks.{i}.linear2", h, 4 * h))
    yield from (("final_layer.adaLN_modulation.1", 2 * h, h), ("final_layer.linear", HEAD, h))


def _norms(p: Problem) -> Iterable[str]:
    for which in ("query_norm", "key_norm"):
        yield from (f"double_blocks.{i}.{s}_attn.norm.{which}" for i in range(p.double) for s in ("img", "txt"))
        yield from (f"single_blocks.{i}.norm.{which}" for i in range(p.single))


def train(
    problem: Problem, predict: Callable[[Tensor, Tensor], Tensor], parameters: list, done: Callable[[float], None]
):
    """Flow-matching steps, endless: noise, prediction, squared error, backward, clipping, AdamW, ``done``."""
    x0 = problem.inputs()[0].to(problem.device)
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.01)
    g = torch.Generator().manual_seed(2)
    while True:
        noise, t = torch.randn(x0.shape, generator=g).to(x0), torch.rand(1, generator=g).to(x0)
        loss = (predict((1 - t) * x0 + t * noise, t).float() - (noise - x0)).square().mean()
        loss.backward()
        value = loss.item()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done(value)
