"""Formats of stored weights that newer versions of ComfyUI read, taught to the running one as those versions do it."""

from __future__ import annotations

import json

import comfy.ops
import comfy.quant_ops
import torch

try:
    import comfy_kitchen.tensor as tensor
except ImportError:  # old versions of ComfyUI do without it
    tensor = None

AWQ = "awq_w4a16"
LAYOUT = "TensorCoreAWQW4A16Layout"  # comfy-kitchen had it before any ComfyUI loaded such a file


def teach(format: str, monkeypatch) -> bool:
    """Make the running ComfyUI read a format that it does not know. False if this is not possible.

    Core's own loader of quantised layers gets the branch that it has in newer versions: the weight's numbers, scales
    and middles become one tensor of comfy-kitchen. All else is core's and comfy-kitchen's own code.
    """
    if format != AWQ or not hasattr(tensor, LAYOUT) or not hasattr(comfy.ops, "_load_quantized_module"):
        return False
    known = {
        "storage_t": torch.int8,
        "parameters": {"weight_scale", "weight_zeros"},
        "comfy_tensor_layout": LAYOUT,
        "quantize_input": False,
    }
    monkeypatch.setitem(comfy.quant_ops.QUANT_ALGOS, AWQ, known)
    before = comfy.ops._load_quantized_module

    def load(module, super_load, state_dict, prefix, *rest, **options):
        text = state_dict.get(f"{prefix}comfy_quant")
        described = json.loads(text.numpy().tobytes()) if text is not None else {}
        if described.get("format") != AWQ:
            return before(module, super_load, state_dict, prefix, *rest, **options)
        return _load_awq(module, super_load, state_dict, prefix, described, *rest)

    monkeypatch.setattr(comfy.ops, "_load_quantized_module", load)
    return True


def _load_awq(module, super_load, state_dict, prefix, described, local, strict, missing, unexpected, errors) -> None:
    device, dtype = module.factory_kwargs["device"], module.factory_kwargs["dtype"]
    del state_dict[f"{prefix}comfy_quant"]
    weight, scale, zeros = (
        state_dict.pop(f"{prefix}{name}").to(device) for name in ("weight", "weight_scale", "weight_zeros")
    )
    layout = comfy.quant_ops.get_layout_class(LAYOUT)
    params = layout.Params(
        scale=scale, zeros=zeros, group_size=described["group_size"], orig_dtype=dtype, orig_shape=module._orig_shape
    )
    module.quant_format, module.layout_type = AWQ, LAYOUT
    module._full_precision_mm_config = False
    stored = comfy.quant_ops.QuantizedTensor(weight, LAYOUT, params)
    module.weight = torch.nn.Parameter(stored, requires_grad=False)
    super_load(state_dict, prefix, local, strict, missing, unexpected, errors)
    if f"{prefix}weight" in missing:
        missing.remove(f"{prefix}weight")
