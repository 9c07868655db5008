"""Which Linear of ComfyUI's transformer a name in a LoRA file means, whichever program wrote the file.

There are two families of names: those of Black Forest Labs, which ComfyUI, ai-toolkit and musubi use, and those of
diffusers, which SimpleTuner uses too and which split the fused qkv in three. Both are written with dots or with
underscores, and with or without a prefix.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import UserError

Sizes = dict[str, tuple[int, int]]  # (in features, out features) of every Linear by its name in ComfyUI's transformer

KINDS = ("double", "single")  # of blocks, in the order in which they run
FIRST, TEXT = "double_blocks.0.img_attn.qkv.weight", "txt_in.weight"  # every FLUX.2 transformer has these
_DOTTED = re.compile(r"(base_model\.model\.|model\.|diffusion_model\.|transformer\.|unet\.)+")
_UNDERSCORED = re.compile(r"(lora_unet_|lora_transformer_|lycoris_)")

# A Linear's names in diffusers: one or more alternatives. Several names in one alternative split its rows equally.
_IN_DOUBLE_BLOCK = {
    "img_attn.qkv": (("attn.to_q", "attn.to_k", "attn.to_v"),),
    "img_attn.proj": (("attn.to_out.0",),),
    "img_mlp.0": (("ff.linear_in",), ("ff.net.0.proj",)),
    "img_mlp.2": (("ff.linear_out",), ("ff.net.2",)),
    "txt_attn.qkv": (("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),),
    "txt_attn.proj": (("attn.to_add_out",),),
    "txt_mlp.0": (("ff_context.linear_in",), ("ff_context.net.0.proj",)),
    "txt_mlp.2": (("ff_context.linear_out",), ("ff_context.net.2",)),
}
_IN_SINGLE_BLOCK = {
    "linear1": (("attn.to_qkv_mlp_proj",),),
    "linear2": (("attn.to_out",), ("proj_out",)),
}
_OUTSIDE = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_guidance_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_guidance_embed.timestep_embedder.linear_2",
    "guidance_in.in_layer": "time_guidance_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_guidance_embed.guidance_embedder.linear_2",
    "double_stream_modulation_img.lin": "double_stream_modulation_img.linear",
    "double_stream_modulation_txt.lin": "double_stream_modulation_txt.linear",
    "single_stream_modulation.lin": "single_stream_modulation.linear",
    "final_layer.linear": "proj_out",
}
# Norms of queries and keys in a block of each kind: the name in ComfyUI, and the name in diffusers.
NORMS = {
    "double": {
        "img_attn.norm.query_norm": "attn.norm_q",
        "img_attn.norm.key_norm": "attn.norm_k",
        "txt_attn.norm.query_norm": "attn.norm_added_q",
        "txt_attn.norm.key_norm": "attn.norm_added_k",
    },
    "single": {"norm.query_norm": "attn.norm_q", "norm.key_norm": "attn.norm_k"},
}
SWAPPED = "final_layer.adaLN_modulation.1"  # (shift, scale); diffusers' norm_out.linear is (scale, shift)


def sizes_of(hidden: int, double_blocks: int, single_blocks: int, context: int) -> Sizes:
    """The sizes of the Linears of a FLUX.2 with these dimensions, including dev's guidance, which klein lacks."""
    h = hidden
    sizes = {"img_in": (128, h), "txt_in": (context, h)}
    for embedder in ("time_in", "guidance_in"):
        sizes |= {f"{embedder}.in_layer": (256, h), f"{embedder}.out_layer": (h, h)}
    sizes |= {f"double_stream_modulation_{stream}.lin": (h, 6 * h) for stream in ("img", "txt")}
    sizes["single_stream_modulation.lin"] = (h, 3 * h)
    for n in range(double_blocks):
        for stream in ("img", "txt"):
            block = f"double_blocks.{n}.{stream}"
            sizes |= {f"{block}_attn.qkv": (h, 3 * h), f"{block}_attn.proj": (h, h)}
            sizes |= {f"{block}_mlp.0": (h, 6 * h), f"{block}_mlp.2": (3 * h, h)}
    for n in range(single_blocks):
        sizes |= {f"single_blocks.{n}.linear1": (h, 9 * h), f"single_blocks.{n}.linear2": (4 * h, h)}
    return sizes | {"final_layer.linear": (h, 128), SWAPPED: (h, 2 * h)}


def dimensions_of(shapes: Mapping[str, Sequence[int]], file: str) -> tuple[int, int, int, int]:
    """(hidden, double blocks, single blocks, context) of a transformer: the arguments of ``sizes_of``.

    ``shapes`` are those of its tensors, by ComfyUI's names. Raises UserError naming ``file`` if a matrix is missing.
    """
    for name in (FIRST, TEXT):
        if len(shapes.get(name, ())) != 2:
            raise UserError(f"{file} has no matrix {name}, which every FLUX.2 transformer has.")
    double, single = (
        len({m[1] for name in shapes if (m := re.match(rf"{kind}_blocks\.(\d+)\.", name))}) for kind in KINDS
    )
    return shapes[FIRST][0] // 3, double, single, shapes[TEXT][1]


@dataclass(frozen=True)
class LinearPlace:
    """A Linear, or ``count`` of its output rows from ``start`` on.

    ``swapped``: the file has the second half of the rows before the first.
    """

    name: str
    start: int
    count: int
    swapped: bool = False


def in_diffusers(name: str) -> list[tuple[str, ...]]:
    """Alternatives for a Linear's name in diffusers, FLUX.2's first. Several names in one split the rows equally."""
    parts = re.fullmatch(r"(double|single)_blocks\.(\d+)\.(.+)", name)
    if not parts:
        return [(_OUTSIDE[name],)] if name in _OUTSIDE else []
    table = _IN_DOUBLE_BLOCK if parts[1] == "double" else _IN_SINGLE_BLOCK
    block = f"{'single_' if parts[1] == 'single' else ''}transformer_blocks.{parts[2]}."
    return [tuple(block + last for last in names) for names in table.get(parts[3], ())]


class Names:
    """Finds the Linear that a name in a file means, in a model whose Linears have these sizes."""

    def __init__(self, sizes: Sizes):
        self.places = {alias: place for name, size in sizes.items() for alias, place in _aliases(name, *size)}
        self.underscored = {alias.replace(".", "_"): place for alias, place in self.places.items()}

    def find(self, stem: str) -> LinearPlace | None:
        """The place that a stem means, ``None`` if there is none. A stem is a key without ``.lora_A.weight`` etc."""
        if is_underscored(stem):
            return self.underscored.get(without_prefix(stem))
        bare = bare_name(stem)  # musubi's converter writes names in which only some underscores became dots
        return self.places.get(bare) or self.underscored.get(bare.replace(".", "_"))


def is_underscored(stem: str) -> bool:
    """Whether a stem has underscores in the place of dots."""
    return _UNDERSCORED.match(stem) is not None


def without_prefix(stem: str) -> str:
    """A stem with underscores, without the prefix that programs put before the transformer's own names."""
    return _UNDERSCORED.sub("", stem, count=1)


def bare_name(stem: str) -> str:
    """A stem with dots, without the prefixes that programs put before the transformer's own names."""
    return _DOTTED.sub("", stem, count=1) if _DOTTED.match(stem) else stem


def _aliases(name: str, into: int, out: int):
    yield name, LinearPlace(name, 0, out)
    for alternative in in_diffusers(name):
        count = out // len(alternative)
        for index, alias in enumerate(alternative):
            yield alias, LinearPlace(name, index * count, count)
    if name == SWAPPED:
        yield "norm_out.linear", LinearPlace(name, 0, out, swapped=True)
    if name.endswith(".linear1"):
        yield f"{name}_qkv", LinearPlace(name, 0, 3 * into)
