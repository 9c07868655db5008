"""LoRA files as other programs write them, from their keys and formulas alone: no code of theirs is in here.

``FILES`` names who writes what; ``made`` gives a file's tensors and, in float64, the weights that it makes of others.
"""

import math
from dataclasses import dataclass

import torch

H = 128
PROJ, LINEAR2 = "double_blocks.0.img_attn.proj", "single_blocks.1.linear2"
QKV = "double_blocks.0.txt_attn.qkv"
BLOCK, SINGLE = "transformer_blocks.0.attn", "single_transformer_blocks.1.attn"


@dataclass
class Naming:
    """How a program names layers: (stem in the file, layer, rows in thirds of it or None for all)."""

    stems: list[tuple[str, str, int | None]]


def in_diffusers(prefix, dot):
    names = [(f"{BLOCK}.to_out.0", PROJ, None), (f"{SINGLE}.to_out", LINEAR2, None)]
    names += [(f"{BLOCK}.add_{x}_proj", QKV, third) for third, x in enumerate("qkv")]
    return Naming([(prefix + stem.replace(".", dot), layer, third) for stem, layer, third in names])


def in_comfyui(prefix, dot):
    return Naming([(prefix + layer.replace(".", dot), layer, None) for layer in (PROJ, LINEAR2, QKV)])


DOTTED, LYCORIS = in_diffusers("transformer.", "."), in_diffusers("lycoris_", "_")
COMFYUI, KOHYA = in_comfyui("diffusion_model.", "."), in_comfyui("lora_unet_", "_")
BARE = in_comfyui("", ".")


def numbers(*shape, scale=1.0):
    return torch.randn(*shape) * scale


def lora_of(w):
    up, down = numbers(len(w), 2), numbers(2, w.shape[1], scale=0.05)
    return {"lora_up.weight": up, "lora_down.weight": down, "alpha": torch.tensor(1.0)}, up @ down / 2


def loha_of(w):
    a, b, c, d = numbers(len(w), 2), numbers(2, w.shape[1], scale=0.1), numbers(len(w), 2), numbers(2, w.shape[1])
    keys = {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d, "alpha": torch.tensor(1.0)}
    return keys, (a @ b) * (c @ d) / 2


def lokr_of(w):
    out, into = w.shape
    a, b, c = numbers(4, 8), numbers(out // 4, 2), numbers(2, into // 8, scale=0.05)
    keys = {"lokr_w1": a, "lokr_w2_a": b, "lokr_w2_b": c, "alpha": torch.tensor(1.0)}
    return keys, torch.kron(a, b @ c) / 2


def lokr_whole_of(w):
    a, b = numbers(4, 8), numbers(len(w) // 4, w.shape[1] // 8, scale=0.05)
    return {"lokr_w1": a, "lokr_w2": b, "alpha": torch.tensor(9999999999.0)}, torch.kron(a, b)


def decomposed(keys, change, w, axis, key="dora_scale", flat=False):
    """DoRA as LyCORIS, OneTrainer, ai-toolkit and peft compute it: norms of the adapted weight, over ``axis``."""
    adapted = w + change.double()
    m = w.float().norm(dim=axis, keepdim=True) * (1 + numbers(*w.norm(dim=axis, keepdim=True).shape, scale=0.2))
    changed = m.double() * adapted / adapted.square().sum(axis, keepdim=True).sqrt()
    return {**keys, key: m.flatten() if flat else m}, changed


def rows_of(kind):
    return lambda w, stem: decomposed(*kind(w.float()), w, 1)


def columns_of(kind):
    return lambda w, stem: decomposed(*kind(w.float()), w, 0)


def by_ai_toolkit(w, stem):
    up, down = numbers(len(w), 2), numbers(2, w.shape[1], scale=0.05)  # no alpha: it is the rank
    return decomposed({"lora_B.weight": up, "lora_A.weight": down}, up @ down, w, 1, "magnitude", flat=True)


def by_peft(w, stem):
    up, down = numbers(len(w), 2), numbers(2, w.shape[1], scale=0.05)
    keys = {"lora_B.weight": up, "lora_A.weight": down}
    return decomposed(keys, up @ down, w, 1, "lora_magnitude_vector.weight", flat=True)


def difference(key):
    def make(w, stem):
        change = numbers(*w.shape, scale=0.02)
        return {key: change}, w + change.double()

    return make


def skew(*shape, scale=0.2):
    return numbers(*shape, scale=scale)


def rotation(q):
    """(I + Q)(I - Q)^-1 of one skew-symmetric Q."""
    one = torch.eye(len(q), dtype=torch.float64)
    return (one + q) @ torch.linalg.inv(one - q)


def generators(blocks, limit):
    """B - B^T of every block, all together scaled to the norm ``limit`` where that is set and exceeded."""
    q = blocks.double() - blocks.double().transpose(-1, -2)
    norm = q.square().sum().sqrt()
    return q * (limit / norm) if limit and norm > limit else q


def diag_oft(constraint, times_size, rescaled=False):
    """diag-OFT: each group of rows turned by R^T. The limit is ``constraint``, in LyCORIS times the number of rows."""

    def make(w, stem):
        blocks = skew(len(w) // 16, 16, 16)
        q = generators(blocks, constraint * (len(w) if times_size else 1))
        turned = torch.block_diag(*[rotation(each).T for each in q]) @ w
        keys = {"oft_blocks": blocks, "alpha": torch.tensor(float(constraint))}
        if rescaled:
            keys["rescale"] = 1 + numbers(len(w), 1, scale=0.1)
            turned = keys["rescale"].double() * turned
        return keys, turned

    return make


def boft(w, stem):
    """BOFT: stage i couples entries 2^i b/2 apart; every stage a permutation, R in blocks, and the way back."""
    size, b, stages = len(w), 8, 3
    blocks = skew(stages, size // b, b, b)
    turned = w
    for i, q in enumerate(generators(blocks, 0)):
        apart = 2**i * b // 2
        order = [c + r + g * apart for c in range(0, size, 2 * apart) for r in range(apart) for g in range(2)]
        mixed = torch.block_diag(*[rotation(each) for each in q])
        back = torch.empty(size, dtype=torch.long)
        back[torch.tensor(order)] = torch.arange(size)
        turned = (mixed @ turned[order])[back]
    return {"oft_blocks": blocks, "alpha": torch.tensor(0.0)}, turned


def by_onetrainer(scaled=False, shared=False):
    """OFT over the inputs: x' = x R, with R = I + 2 Q + 2 Q^2 + 2 Q^3 + Q^4."""

    def make(w, stem):
        b = 16
        groups = w.shape[1] // b
        upper = numbers(1 if shared else groups, b * (b - 1) // 2, scale=0.5 if scaled else 0.05)
        turns, one = [], torch.eye(b, dtype=torch.float64)
        for row in upper.double() / (2 * math.sqrt(b - 1) if scaled else 1):
            q = torch.zeros(b, b, dtype=torch.float64)
            q[[i for i in range(b) for j in range(i + 1, b)], [j for i in range(b) for j in range(i + 1, b)]] = row
            q = q - q.T
            turns.append(one + 2 * q + 2 * q @ q + 2 * q @ q @ q + q @ q @ q @ q)
        whole = torch.block_diag(*(turns * groups if shared else turns))
        keys = {"oft_R.weight": upper} | ({"oft_R.scaled_oft": torch.tensor(True)} if scaled else {})
        return keys, w @ whole.T

    return make


FILES = {
    "LyCORIS DoRA": (LYCORIS, rows_of(lora_of)),
    "LyCORIS DoRA on LoHa": (LYCORIS, rows_of(loha_of)),
    "LyCORIS DoRA on LoKr": (LYCORIS, rows_of(lokr_of)),
    "LyCORIS DoRA on whole LoKr": (LYCORIS, rows_of(lokr_whole_of)),
    "LyCORIS DoRA over inputs": (LYCORIS, columns_of(lokr_of)),
    "kohya LyCORIS DoRA on LoKr": (KOHYA, rows_of(lokr_of)),
    "OneTrainer DoRA over inputs, ComfyUI": (COMFYUI, columns_of(lora_of)),
    "OneTrainer DoRA, ComfyUI": (COMFYUI, rows_of(lora_of)),
    "OneTrainer DoRA, legacy": (DOTTED, rows_of(lora_of)),
    "OneTrainer DoRA, original": (BARE, rows_of(lora_of)),
    "OneTrainer DoRA on LoKr, kohya": (KOHYA, rows_of(lokr_of)),
    "ai-toolkit DoRA": (COMFYUI, by_ai_toolkit),
    "diffusers DoRA": (DOTTED, by_peft),
    "ai-toolkit difference": (COMFYUI, difference("diff")),
    "LyCORIS difference": (LYCORIS, difference("diff")),
    "kohya difference": (KOHYA, difference("diff")),
    "ai-toolkit full rank": (COMFYUI, difference("lora_A.weight")),
    "ComfyUI OFT": (COMFYUI, diag_oft(1.0, False)),
    "LyCORIS OFT": (LYCORIS, diag_oft(0.0, True)),
    "LyCORIS OFT, constrained": (LYCORIS, diag_oft(0.01, True)),
    "LyCORIS OFT, rescaled": (LYCORIS, diag_oft(0.0, True, rescaled=True)),
    "LyCORIS BOFT": (LYCORIS, boft),
    "OneTrainer OFT": (DOTTED, by_onetrainer()),
    "OneTrainer OFT, ComfyUI": (COMFYUI, by_onetrainer()),
    "OneTrainer scaled OFT": (DOTTED, by_onetrainer(scaled=True)),
    "OneTrainer shared OFT": (KOHYA, by_onetrainer(shared=True)),
}


def made(what, weights):
    """(tensors of the file, the weights that it makes of ``weights``)."""
    torch.manual_seed(0)
    naming, make = FILES[what]
    tensors, changed = {}, {}
    for stem, layer, third in naming.stems:
        w = weights[layer].double()
        own = w if third is None else w.chunk(3)[third]
        keys, new = make(own, stem)
        tensors |= {f"{stem}.{key}": value.float() for key, value in keys.items()}
        changed[layer] = torch.cat((changed[layer], new)) if third else new
    return tensors, changed
