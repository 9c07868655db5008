"""How many bytes a step's activations take, block by block, counted tensor by tensor.

The unit is one tensor (tokens, hidden) in the dtype of computation. The blocks are FLUX.2's as ComfyUI runs them with
the changes of ``host.borrowed``; the tests compare the figures with counted bytes. A frozen Linear keeps nothing. Its
adapter keeps its input, its narrow output (DoRA: also its own wide output and the base's) and its cast matrices.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

HEAD = 128  # channels of an attention head
# By a Linear's name: how many numbers its adapter keeps for each token beside its input (LoRA: the rank), and how many
# parameters the adapter has.
Sites = dict[str, tuple[int, int]]
# Features that a Linear reads (INTO) and gives (OUT), in multiples of the hidden size.
INTO = {"attn.qkv": 1, "attn.proj": 1, "mlp.0": 1, "mlp.2": 3, "linear1": 1, "linear2": 4}
OUT = {"attn.qkv": 3, "attn.proj": 1, "mlp.0": 6, "mlp.2": 1, "linear1": 9, "linear2": 1}
ROPE = 4 * 4 * HEAD // 2  # bytes of a token's rotary embedding: 64 matrices of 2 x 2 in fp32


@dataclass(frozen=True)
class Tokens:
    """The size of one pass: number of samples, and image tokens (including references) and text tokens of each."""

    batch: int
    image: int
    text: int = 512

    @property
    def all(self) -> int:
        """Tokens of the whole pass."""
        return self.batch * (self.image + self.text)


@dataclass(frozen=True)
class Block:
    """Bytes of one block.

    ``inputs``: the streams that enter it; a recomputed block keeps nothing else. ``attention``: the outputs of
    attention, which selective recomputation keeps too. ``kept``: what autograd keeps until backward if the block is not
    recomputed. ``top``: the most that is alive at one time inside it, in forward or backward, without ``inputs``.
    """

    inputs: int
    attention: int
    kept: int
    top: int


@dataclass(frozen=True)
class Numbers:
    """What all blocks share: hidden size, bytes of a number in the dtype of computation, the kind of adapter."""

    hidden: int
    size: int
    fp32_adapters: bool = False
    kind: str = "lora"

    @property
    def added(self) -> bool:
        """Whether an adapted Linear adds a plain LoRA inside its own product (``host.borrowed.lora_linear``)."""
        return self.kind == "lora" and not (self.fp32_adapters and self.size < 4)

    def adapter(self, tokens: int, into: int, narrow: int, parameters: int) -> float:
        """Bytes that an adapter keeps beside its input: narrow output, cast matrices, the input cast to fp32.

        A LoRA's matrices are cast once for a whole step: ``estimate`` counts them.
        """
        size = 4 if self.fp32_adapters else self.size
        cast = 0 if size == 4 or self.added else size * parameters
        wider = 4 * tokens * into if size > self.size else 0  # the input, cast to fp32
        return size * tokens * narrow + cast + wider

    def inside(self, tokens: int, name: str) -> float:
        """Most bytes alive while the adapter at a Linear is computed, beyond those of a plain LoRA."""
        into, out = INTO[name] * self.hidden, OUT[name] * self.hidden
        if self.kind == "dora":  # the adapted weight in fp32 on the way to its norm; backward's three fp32 products
            return max(12 * into * out, tokens * out * (self.size + 12))
        if self.kind == "loha":  # dW, its two factors and their gradients; and one of linear2's, which is still alive
            return self.size * (5 * into * out + (4 * self.hidden**2 if name == "linear1" else 0))
        return 0.0


def double_block(n: Numbers, tokens: Tokens, sites: Sites, first: bool, dequantised: dict[str, int]) -> Block:
    """A double block. ``sites``: (rank, parameters) of adapted Linears, by name inside the block.

    ``first``: no earlier block has an adapter, so its input needs no gradient. ``dequantised``: bytes that the
    dequantised weight of a Linear takes while it is used.
    """
    unit = n.hidden * n.size
    streams = {"img": tokens.batch * tokens.image, "txt": tokens.batch * tokens.text}
    heads, kept = n.hidden // HEAD, 0.0
    for name, count in streams.items():
        kept += 0 if first else count * (unit + 8)  # the copy that LayerNorm reads, its mean and deviation
        kept += count * (3 * unit + 8 * heads)  # qkv, and RMSNorm's factors of query and key
        kept += count * (unit + 8) + 9 * count * unit  # second LayerNorm; gate and up of the MLP, and the activation
        sliced = int(tokens.batch > 1 and not n.added)  # proj's input is a slice, of which others keep a copy
        inputs = {"attn.qkv": 1, "attn.proj": sliced, "mlp.0": 1, "mlp.2": 3}
        kept += sum(_site(n, count, sites.get(f"{name}_{at}"), width, at) for at, width in inputs.items())
    attention = tokens.all * (unit + 4 * heads)
    kept += 3 * tokens.all * unit + attention  # rotated query and key, value, and attention's outputs
    tops = [*_top_of_double(streams, unit, 1 if n.added else 3, dequantised), *_adapters_of_double(n, streams, sites)]
    return Block(tokens.all * unit, attention, round(kept), round(max(tops)))


def _site(n: Numbers, count: int, site: tuple[int, int] | None, width: int, name: str) -> float:
    """Bytes that an adapter at a Linear keeps: its input (``width`` units, 0 if it is kept anyway) and its own."""
    if site is None:
        return 0.0
    into = 3 * n.hidden if name == "mlp.2" else n.hidden
    return width * count * n.hidden * n.size + n.adapter(count, into, *site)


def _adapters_of_double(n: Numbers, streams: dict[str, int], sites: Sites) -> Iterator[float]:
    """Bytes alive while each adapter is computed, as ``_top_of_double``; they count for other kinds than LoRA."""
    wide = {name: streams[name[:3]] * narrow * n.size for name, (narrow, _) in sites.items()}
    before = 14 * n.hidden * n.size * sum(streams.values()) + sum(wide.values())
    for name in sites:
        yield before + n.inside(streams[name[:3]], name[4:])


def _top_of_double(streams: dict[str, int], unit: int, terms: int, dequantised: dict[str, int]) -> Iterator[float]:
    """Bytes alive at the moments at which most may be alive, each counted in tensors of one ``unit`` per token.

    ``terms``: tensors of an adapted Linear's output, 3 for base, adapter and their sum, 1 where the base is added to.
    """
    image, text = streams["img"], streams["txt"]
    both = image + text
    before = 14 * both  # both LayerNorms and what they give, qkv, rotated q and k, v, attention (twice), copies
    wide = dequantised.get("img_mlp.0", 0)
    yield unit * (before + 6 * terms * image)  # forward of the image's first MLP layer
    yield unit * (before + 13 * image + 6 * terms * text)  # forward of the text's, while the image's MLP is kept
    yield unit * (before + 6 * image) + wide  # forward of the image's first MLP layer, while its weight is dequantised
    yield unit * (23 * both - 14 * text + 9 * image + 2 * both)  # backward of the image's activation
    yield unit * (21 * both) + max(wide, dequantised.get("img_mlp.2", 0))


def single_block(n: Numbers, tokens: Tokens, sites: Sites, first: bool, dequantised: dict[str, int]) -> Block:
    """A single block; arguments as for ``double_block``."""
    unit, heads, count = n.hidden * n.size, n.hidden // HEAD, tokens.all
    attention = count * (unit + 4 * heads)
    kept = (0 if first else count * (unit + 8)) + count * 8 * heads + attention
    kept += count * unit * (9 + 2 + 3)  # linear1's output; rotated query and key; the MLP's activation
    for name, width, into in (("linear1", 1, n.hidden), ("linear2", 4, 4 * n.hidden)):
        if name in sites:
            kept += width * count * unit + n.adapter(count, into, *sites[name])
    wide, narrow = dequantised.get("linear1", 0), dequantised.get("linear2", 0)
    own = n.size * count * sites.get("linear1", (0, 0))[0]  # what linear1's adapter keeps
    top = max(
        unit * count * 31 + own,  # backward of the activation: 9 + 6 + 4 + 3 + 3 wide, 6 of the hidden width
        unit * count * 12 + wide,  # forward of linear1
        unit * count * 27 + narrow,  # backward of linear2, before the rest is released
        unit * count * 14 + wide,  # backward of linear1
        *(unit * count * (12 if n.kind == "loha" else 2) + own + n.inside(count, name) for name in sites),
    )
    return Block(count * unit, attention, round(kept), round(top))
