"""The layouts in which FLUX.2 transformers are published: exact names, types, shapes and headers.

In small they are written with random weights, in true size as hollow files: a true header, and behind it no bytes on
the disk. The tables are written down from the published headers, not taken from the code under test.

    path = write(folder / "model.safetensors", LAYOUTS["fp8"], KLEIN, drawn(KLEIN))   # small
    path = write_hollow(folder / "model.safetensors", *headers_of(LAYOUTS["fp8"], FLAVOURS["klein-9b"]))
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import comfy.quant_ops
import torch
from comfy.quant_ops import QuantizedTensor
from safetensors.torch import save_file
from torch import Tensor

from bench.as_diffusers import diffusers_weights

Entry = tuple[str, tuple[int, ...]]  # type by safetensors' name, shape
BYTES = {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I8": 1, "U8": 1, "I64": 8}
TYPES = {
    torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float8_e4m3fn: "F8_E4M3",
    torch.int8: "I8", torch.uint8: "U8", torch.int64: "I64",
}  # fmt: skip


@dataclass(frozen=True)
class Size:
    """Hidden features, double blocks, single blocks, features of the text, and whether guidance is embedded."""

    hidden: int
    double: int
    single: int
    context: int
    guidance: bool = False


KLEIN, DEV = Size(256, 2, 2, 96), Size(256, 2, 2, 96, guidance=True)  # in small
FLAVOURS = {
    "klein-4b": Size(3072, 5, 20, 7680),
    "klein-9b": Size(4096, 8, 24, 12288),
    "dev": Size(6144, 8, 48, 15360, guidance=True),
}


def shapes(size: Size) -> dict[str, tuple[int, ...]]:
    """Every tensor of a bf16 file of Black Forest Labs, matrices as (out, in)."""
    h = size.hidden
    found = {"img_in.weight": (h, 128), "txt_in.weight": (h, size.context)}
    for name in ("time_in", "guidance_in") if size.guidance else ("time_in",):
        found |= {f"{name}.in_layer.weight": (h, 256), f"{name}.out_layer.weight": (h, h)}
    found |= {f"double_stream_modulation_{which}.lin.weight": (6 * h, h) for which in ("img", "txt")}
    found["single_stream_modulation.lin.weight"] = (3 * h, h)
    for n in range(size.double):
        for stream in (f"double_blocks.{n}.img", f"double_blocks.{n}.txt"):
            found |= {f"{stream}_attn.norm.{which}_norm.scale": (128,) for which in ("key", "query")}
            found |= {f"{stream}_attn.proj.weight": (h, h), f"{stream}_attn.qkv.weight": (3 * h, h)}
            found |= {f"{stream}_mlp.0.weight": (6 * h, h), f"{stream}_mlp.2.weight": (h, 3 * h)}
    for n in range(size.single):
        found |= {f"single_blocks.{n}.norm.{which}_norm.scale": (128,) for which in ("key", "query")}
        found |= {f"single_blocks.{n}.linear1.weight": (9 * h, h), f"single_blocks.{n}.linear2.weight": (h, 4 * h)}
    return found | {"final_layer.linear.weight": (128, h), "final_layer.adaLN_modulation.1.weight": (2 * h, h)}


def in_blocks(layer: str) -> bool:
    return "_blocks." in layer


def without_attention(layer: str) -> bool:
    return in_blocks(layer) and "_attn." not in layer


def but_one_stream(layer: str) -> bool:
    return in_blocks(layer) and not layer.startswith("double_blocks.0.txt")


@dataclass(frozen=True)
class Layout:
    """How a file stores a transformer.

    ``format``: of the quantised layers, which ``which`` chooses. ``marker``: where the file says so: in its header, in
    a tensor beside each layer, in the one tensor ``scaled_fp8`` of older files, or nowhere. ``notes``: what it says
    beside the format. ``prefix`` stands before every name, ``marked`` before those that the header lists. ``norm``: how
    the weights of the norms of q and k end. ``dtype``: of all that is not quantised.
    """

    format: str = ""
    which: Callable[[str], bool] = in_blocks
    marker: str = "header"
    notes: tuple[tuple[str, object], ...] = ()
    input_scale: bool = False
    prefix: str = ""
    marked: str = ""
    norm: str = "scale"
    dtype: str = "BF16"

    def quantises(self, key: str, shape: tuple[int, ...]) -> bool:
        return bool(self.format) and len(shape) == 2 and self.which(key.removesuffix(".weight"))


FP8, CHECKPOINT = "float8_e4m3fn", "model.diffusion_model."
LAYOUTS: dict[str, Layout] = {
    # Black Forest Labs: klein and dev; the kv variant of klein-9b has the same 201 tensors
    "bf16": Layout(),
    "fp8": Layout(FP8, input_scale=True),
    "fp8, some layers bf16": Layout(FP8, but_one_stream, input_scale=True),  # as the kv variant: 23 h^2 numbers are
    "nvfp4": Layout("nvfp4", input_scale=True),
    "nvfp4 mixed": Layout("nvfp4", without_attention),
    # Comfy-Org
    "fp8mixed": Layout(FP8, without_attention, input_scale=True),
    # ComfyUI's own saving node, and converters after its example
    "fp8 by tensor": Layout(FP8, marker="comfy_quant"),
    "nvfp4 by tensor": Layout("nvfp4", marker="comfy_quant"),
    "mxfp8": Layout("mxfp8", marker="comfy_quant"),
    "mxfp8 by header": Layout("mxfp8", notes=(("group_size", 32), ("orig_dtype", "torch.bfloat16"))),
    "int8": Layout("int8_tensorwise", marker="comfy_quant"),
    "int8 convrot": Layout("int8_tensorwise", notes=(("convrot", True), ("convrot_groupsize", 256))),
    "int8 convrot by tensor": Layout(
        "int8_tensorwise", marker="comfy_quant", notes=(("convrot", True), ("convrot_groupsize", 256))
    ),
    "int4 convrot": Layout("convrot_w4a4", marker="comfy_quant", notes=(("convrot_groupsize", 256),)),
    "int4 convrot for int8": Layout(
        "convrot_w4a4", marker="comfy_quant", notes=(("convrot_groupsize", 256), ("linear_dtype", "int8"))
    ),
    "w4a8": Layout("asym_w4a8_int8", marker="comfy_quant", notes=(("group_size", 16), ("convrot_groupsize", 256))),
    "w4a8 by header": Layout("asym_w4a8_int8", notes=(("group_size", 16), ("convrot_groupsize", 256))),
    "awq w4a16": Layout("awq_w4a16", marker="comfy_quant", notes=(("group_size", 64),)),
    # before ComfyUI had formats for each layer
    "scaled fp8": Layout(FP8, marker="scaled_fp8", input_scale=True),
    "fp8 cast": Layout("cast", marker=""),
    # what others make of them
    "fp16": Layout(dtype="F16"),
    "fp32": Layout(dtype="F32"),
    "norms named weight": Layout(norm="weight"),
    "checkpoint": Layout(prefix=CHECKPOINT),
    "checkpoint fp8": Layout(FP8, input_scale=True, prefix=CHECKPOINT, marked=CHECKPOINT),
    "checkpoint fp8, names bare": Layout(FP8, input_scale=True, prefix=CHECKPOINT),
    "checkpoint scaled fp8": Layout(FP8, marker="scaled_fp8", prefix=CHECKPOINT),
}


def rounded_up(number: int, to: int) -> int:
    return -(-number // to) * to


def _stored(format: str, out: int, into: int) -> dict[str, Entry]:
    """A quantised matrix in the file, by what follows the layer's name; scales of blocks lie in tiles of 128 x 4."""
    tiles = rounded_up(out, 128)
    return {
        FP8: {"weight": ("F8_E4M3", (out, into)), "weight_scale": ("F32", ())},
        "cast": {"weight": ("F8_E4M3", (out, into))},
        "nvfp4": {
            "weight": ("U8", (out, into // 2)),
            "weight_scale": ("F8_E4M3", (tiles, rounded_up(into // 16, 4))),
            "weight_scale_2": ("F32", ()),
        },
        "mxfp8": {
            "weight": ("F8_E4M3", (out, into)),
            "weight_scale": ("U8", (tiles, rounded_up(into // 32, 4))),
        },
        "int8_tensorwise": {"weight": ("I8", (out, into)), "weight_scale": ("F32", (out, 1))},
        "convrot_w4a4": {"weight": ("I8", (out, into // 2)), "weight_scale": ("F32", (out,))},
        "asym_w4a8_int8": {
            "weight": ("I8", (out, into // 2)),
            "weight_s_rel": ("F8_E4M3", (out, into // 16)),
            "weight_s_channel": ("F32", (out,)),
            "weight_codebook": ("F32", (16,)),
        },
        "awq_w4a16": {
            "weight": ("I8", (out, into // 2)),
            "weight_scale": ("BF16", (into // 64, out)),
            "weight_zeros": ("BF16", (into // 64, out)),
        },
    }[format]


def _said(layout: Layout) -> dict:
    return {"format": layout.format, **dict(layout.notes)}


def headers_of(layout: Layout, size: Size) -> tuple[dict[str, Entry], dict[str, str], dict[str, bytes]]:
    """The tensors of a file, its metadata, and the contents of the tensors that hold text."""
    entries, texts, layers = {}, {}, {}
    old = {"weight_scale": "scale_weight", "input_scale": "scale_input"} if layout.marker == "scaled_fp8" else {}
    for key, shape in shapes(size).items():
        layer = key.removesuffix(".weight")
        if not layout.quantises(key, shape):
            name = re.sub(r"_norm\.scale$", f"_norm.{layout.norm}", key)
            entries[layout.prefix + name] = (layout.dtype, shape)
            continue
        own = _stored(layout.format, *shape) | ({"input_scale": ("F32", ())} if layout.input_scale else {})
        entries |= {f"{layout.prefix}{layer}.{old.get(what, what)}": entry for what, entry in own.items()}
        if layout.marker == "comfy_quant":
            text = json.dumps(_said(layout)).encode()
            texts[f"{layout.prefix}{layer}.comfy_quant"] = text
        layers[layout.marked + layer] = _said(layout)
    if layout.marker == "scaled_fp8":
        entries[f"{layout.prefix}scaled_fp8"] = ("F8_E4M3", (2,))
    entries |= {name: ("U8", (len(text),)) for name, text in texts.items()}
    metadata = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}
    return entries, metadata if layers and layout.marker == "header" else {}, texts


def drawn(size: Size, seed: int = 0) -> dict[str, Tensor]:
    """Random weights by Black Forest Labs' names, rounded to bf16 as they publish them, in fp32."""
    generator = torch.Generator().manual_seed(seed)

    def one(shape: tuple[int, ...]) -> Tensor:
        value = torch.randn(shape, generator=generator)
        return (value * shape[-1] ** -0.5 if len(shape) > 1 else 1 + 0.2 * value).bfloat16().float()

    return {name: one(shape) for name, shape in shapes(size).items()}


def quantised(layer: str, weight: Tensor, layout: Layout) -> tuple[dict[str, Tensor], Tensor]:
    """A matrix as the file has it, by what follows the layer's name, and the values which that stands for."""
    if layout.format == FP8:  # the scale is not the one that ComfyUI would choose
        scale = 1.37 * weight.abs().max() / 448
        stored = (weight / scale).to(torch.float8_e4m3fn)
        return {"weight": stored, "weight_scale": scale}, stored.float() * scale
    if layout.format == "cast":
        stored = weight.to(torch.float8_e4m3fn)
        return {"weight": stored}, stored.float()
    if layout.format == "awq_w4a16":
        return awq(weight)
    options = dict(layout.notes) if layout.format != "mxfp8" else {}
    if layout.format == "int8_tensorwise":
        options |= {"is_weight": True, "per_channel": True}
    kind = comfy.quant_ops.QUANT_ALGOS[layout.format]["comfy_tensor_layout"]
    tensor = QuantizedTensor.from_float(weight, kind, **options)
    found = {key.removeprefix(f"{layer}."): value for key, value in tensor.state_dict(f"{layer}.weight").items()}
    if layout.format == "mxfp8":  # safetensors of that time had no type for such scales
        found["weight_scale"] = found["weight_scale"].view(torch.uint8)
    return found, tensor.dequantize().float()


def awq(weight: Tensor, group: int = 64) -> tuple[dict[str, Tensor], Tensor]:
    """A matrix in AWQ's 4 bits as comfy-kitchen reads them, which cannot make them, and the values they stand for.

    Each group of 64 numbers in a row has a scale s and a middle z: w = (q - 8) s + z, q in 0 to 15. Bits 0 to 3 of a
    byte are the even column, bits 4 to 7 the odd one.
    """
    grouped = weight.unflatten(1, (-1, group))
    low, high = grouped.amin(-1), grouped.amax(-1)
    scale = ((high - low) / 15).bfloat16()
    middle = (low + 8 * scale.float()).bfloat16()
    steps = (grouped - middle.float()[..., None]) / scale.float()[..., None]
    levels = (steps + 8).round().clamp(0, 15)
    meant = ((levels - 8) * scale.float()[..., None] + middle.float()[..., None]).flatten(1)
    numbers = levels.flatten(1).to(torch.uint8)
    packed = (numbers[:, 0::2] | numbers[:, 1::2] << 4).view(torch.int8)
    return {"weight": packed, "weight_scale": scale.T, "weight_zeros": middle.T}, meant


def tensors(layout: Layout, size: Size, weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The file's tensors, and by core's names the values they stand for, in fp32."""
    entries, _, texts = headers_of(layout, size)
    found = {name: torch.frombuffer(bytearray(text), dtype=torch.uint8) for name, text in texts.items()}
    meant, dtype = {}, {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}[layout.dtype]
    old = {"weight_scale": "scale_weight"} if layout.marker == "scaled_fp8" else {}
    for key, weight in weights.items():
        layer, name = key.removesuffix(".weight"), re.sub(r"_norm\.scale$", f"_norm.{layout.norm}", key)
        if layout.quantises(key, weight.shape):
            own, meant[key] = quantised(layer, weight, layout)
            found |= {f"{layout.prefix}{layer}.{old.get(what, what)}": value for what, value in own.items()}
        else:
            found[layout.prefix + name] = weight.to(dtype)
            meant[re.sub(r"_norm\.scale$", "_norm.weight", key)] = weight.to(dtype).float()
    for number, name in enumerate(name for name in entries if name not in found):
        kind, shape = entries[name]  # scales of the input, and the mark of old files
        found[name] = torch.zeros(2).to(torch.float8_e4m3fn) if kind == "F8_E4M3" else torch.tensor(1.0 + number % 3)
    for name, (kind, shape) in entries.items():
        assert (TYPES[found[name].dtype], tuple(found[name].shape)) == (kind, shape), (name, found[name].dtype)
    assert found.keys() == entries.keys()
    return found, meant


def write(path: Path, layout: Layout, size: Size, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Write a small file in a layout. Returns by core's names the values that are in it, in fp32."""
    found, meant = tensors(layout, size, weights)
    save_file({name: value.contiguous() for name, value in found.items()}, path, headers_of(layout, size)[1])
    return meant


def write_diffusers(folder: Path, weights: dict[str, Tensor], parts: int = 1, dtype=torch.bfloat16) -> Path:
    """Write the folder ``transformer/`` of diffusers, split over so many files. Returns the first file."""
    found = {name: value.to(dtype).contiguous() for name, value in diffusers_weights(weights).items()}
    names = sorted(found)
    if parts == 1:
        save_file(found, folder / "diffusion_pytorch_model.safetensors", {"format": "pt"})
        return folder / "diffusion_pytorch_model.safetensors"
    files = [f"diffusion_pytorch_model-{n + 1:05d}-of-{parts:05d}.safetensors" for n in range(parts)]
    where = {name: files[number % parts] for number, name in enumerate(names)}  # q, k and v lie apart
    for file in files:
        save_file({name: found[name] for name in names if where[name] == file}, folder / file, {"format": "pt"})
    index = {"metadata": {"total_size": sum(value.nbytes for value in found.values())}, "weight_map": where}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    return folder / files[0]


def in_diffusers(size: Size, dtype: str = "BF16") -> dict[str, Entry]:
    """The tensors of diffusers' ``transformer/``."""
    with torch.device("meta"):
        weights = {name: torch.empty(shape) for name, shape in shapes(size).items()}
        return {name: (dtype, tuple(value.shape)) for name, value in diffusers_weights(weights).items()}


def nbytes(entry: Entry) -> int:
    return BYTES[entry[0]] * math.prod(entry[1])


def write_hollow(
    path: Path, entries: dict[str, Entry], metadata: dict[str, str], texts: dict[str, bytes] | None = None
) -> Path:
    """Write a file of true size with no bytes on the disk but the header and the texts. Wide types lie first."""
    header, end = {"__metadata__": metadata} if metadata else {}, 0
    for name, entry in sorted(entries.items(), key=lambda pair: (-BYTES[pair[1][0]], pair[0])):
        size = nbytes(entry)
        header[name] = {"dtype": entry[0], "shape": list(entry[1]), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, content in (texts or {}).items():
            file.seek(8 + len(text) + header[name]["data_offsets"][0])
            file.write(content)
        file.truncate(8 + len(text) + end)
    return path
