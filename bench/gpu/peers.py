"""Others' trainers on the same shapes, where they are installed."""

from __future__ import annotations

import importlib.util
import statistics
import time

import comfy.model_management
import torch

from bench.as_diffusers import diffusers_weights
from bench.gpu import models
from bench.shapes import flux2_shapes
from bench.speed.problem import TARGETS
from flux2_train.flavours import FLAVOURS

RANK, STEPS, WARMUP = 16, 3, 2


def diffusers(flavour: str, pixels: int) -> dict:
    """diffusers' transformer in bf16 with peft's LoRA on the same Linears and its own gradient checkpointing."""
    lacking = [name for name in ("diffusers", "peft") if importlib.util.find_spec(name) is None]
    if lacking:
        return {"absent": f"{' and '.join(lacking)} not installed"}
    models.forget()
    device = comfy.model_management.get_torch_device()
    transformer = _transformer(FLAVOURS[flavour], device)
    parameters = [p for p in transformer.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = [_step(transformer, optimizer, parameters, pixels // 16, device) for _ in range(WARMUP + STEPS)]
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return {"seconds": statistics.median(seconds[WARMUP:]), "all_seconds": seconds, "peak": peak,
            "words": "gradient checkpointing, all weights resident"}  # fmt: skip


def _transformer(row, device: torch.device):
    import peft
    from diffusers import Flux2Transformer2DModel

    hidden, double, single, context = row.sizes
    with torch.device("meta"):
        made = Flux2Transformer2DModel(
            in_channels=128, num_layers=double, num_single_layers=single, num_attention_heads=hidden // 128,
            joint_attention_dim=context, guidance_embeds=row.embedded_guidance,
        )  # fmt: skip
    number = torch.bfloat16 if device.type != "cpu" else torch.float32
    tensors = {name: _weight(shape, number, device) for name, shape in flux2_shapes(*row.sizes, row.embedded_guidance)}
    made.load_state_dict(diffusers_weights(tensors), assign=True)
    made.requires_grad_(False).train()
    made.add_adapter(peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS["diffusers"]))
    for parameter in made.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float().to(device)
    made.enable_gradient_checkpointing()
    return made


def _weight(shape: tuple[int, ...], number: torch.dtype, device: torch.device) -> torch.Tensor:
    if len(shape) == 1:
        return torch.ones(shape, dtype=number, device=device)
    return torch.randn(shape, dtype=number, device=device) * shape[1] ** -0.5


def _step(transformer, optimizer, parameters: list, side: int, device: torch.device) -> float:
    started = time.perf_counter()
    kind = transformer.x_embedder.weight.dtype
    width = transformer.context_embedder.weight.shape[1]
    tokens = torch.randn(1, side * side, 128, device=device, dtype=kind)
    text = torch.randn(1, models.TEXT, width, device=device, dtype=kind)
    zero, rows, words = torch.tensor([0]), torch.arange(side), torch.arange(models.TEXT)
    places = torch.cartesian_prod(zero, rows, rows, zero).to(device)
    numbers = torch.cartesian_prod(zero, zero, zero, words).to(device)
    time_of = torch.tensor([0.5], device=device)
    guidance = torch.ones(1, device=device)
    with torch.autocast(device.type, torch.bfloat16, enabled=kind == torch.bfloat16):
        out = transformer(tokens, text, time_of, places, numbers, guidance, return_dict=False)[0]
    (out.float() - torch.randn_like(out, dtype=torch.float32)).square().mean().backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
