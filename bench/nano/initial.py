"""Starting weights: every block open from the first step, and the output already a copy of the noisy input."""

import torch
from torch import nn


@torch.no_grad()
def initialise(model: nn.Module, seed: int) -> None:
    """Fill `model` (ComfyUI's Flux) in place, reproducibly."""
    generator = torch.Generator().manual_seed(seed)
    blocks = len(model.double_blocks) + len(model.single_blocks)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(1.0)
            continue
        parameter.normal_(generator=generator).mul_(parameter.shape[1] ** -0.5)
        if name.endswith(("attn.proj.weight", "mlp.2.weight", "linear2.weight")):
            parameter.mul_((2 * blocks) ** -0.5)
    basis = torch.linalg.qr(model.img_in.weight).Q
    model.img_in.weight.copy_(basis)
    model.final_layer.linear.weight.copy_(basis.T)
    model.final_layer.adaLN_modulation[1].weight.zero_()
    open_gates(model)


def open_gates(model: nn.Module) -> None:
    """Modulations without bias: solve for rows that give shift 0, scale 0 and gate 1 at every t."""
    from comfy.ldm.flux.layers import timestep_embedding

    times = torch.linspace(0, 1, 101)
    signal = nn.functional.silu(model.time_in(timestep_embedding(times, 256)))
    ones = torch.linalg.lstsq(signal.double(), torch.ones(101, 1).double(), rcond=1e-3, driver="gelsd").solution
    for modulation in (
        model.double_stream_modulation_img,
        model.double_stream_modulation_txt,
        model.single_stream_modulation,
    ):
        weight = modulation.lin.weight
        weight.zero_()
        for part in weight.chunk(modulation.multiplier)[2::3]:
            part.copy_(ones.T.float().expand_as(part))
