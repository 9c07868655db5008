"""Random adapters of every kind on the Linears of a small FLUX.2."""

import torch

from flux2_train.adapters import read
from flux2_train.adapters.parts import Hadamard, Kronecker, LowRank

H = 128
SIZES = {
    "img_in": (128, H),
    "final_layer.adaLN_modulation.1": (H, 2 * H),
    **{f"double_blocks.0.{s}_attn.qkv": (H, 3 * H) for s in ("img", "txt")},
    **{f"double_blocks.0.{s}_attn.proj": (H, H) for s in ("img", "txt")},
    **{f"double_blocks.0.{s}_mlp.0": (H, 6 * H) for s in ("img", "txt")},
    **{f"double_blocks.0.{s}_mlp.2": (3 * H, H) for s in ("img", "txt")},
    **{f"single_blocks.{n}.linear1": (H, 9 * H) for n in range(2)},
    **{f"single_blocks.{n}.linear2": (4 * H, H) for n in range(2)},
}
QKV, PROJ = "double_blocks.0.img_attn.qkv", "double_blocks.0.txt_attn.proj"


def numbers(*shape):
    return torch.randn(*shape)


def lora(into, out, rank=3, scale=0.5):
    return LowRank(numbers(rank, into), numbers(out, rank), scale)


def dora(into, out, of_base=True):
    return LowRank(numbers(3, into), numbers(out, 3), 0.5, numbers(out).abs(), of_base)


def loha(into, out):
    return Hadamard(numbers(out, 2), numbers(2, into), numbers(out, 2), numbers(2, into), 0.7)


def lokr(into, out):
    return Kronecker((numbers(4, 8),), (numbers(out // 4, 2), numbers(2, into // 8)), 1.5)


def lokr_whole(into, out):
    return Kronecker((numbers(4, 8),), (numbers(out // 4, into // 8),), 1.5)


def lokr_of_two_ranks(into, out):
    return Kronecker((numbers(4, 1), numbers(1, 8)), (numbers(out // 4, 2), numbers(2, into // 8)), 1.5)


KINDS = [lora, dora, loha, lokr, lokr_whole, lokr_of_two_ranks]
IN_BLOCKS = [name for name in SIZES if "_blocks." in name]


def parts_of(make, names=IN_BLOCKS):
    torch.manual_seed(0)
    return {name: make(*SIZES[name]) for name in names}


def reread(tensors):
    parts, unmatched = read.read(tensors, SIZES, "tiny")
    assert not unmatched
    return parts


def assert_same(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name, part in expected.items():
        torch.testing.assert_close(found[name].delta(), part.delta(), **(tolerance or {"rtol": 1e-5, "atol": 1e-5}))
        if isinstance(part, LowRank) and part.magnitude is not None:
            assert torch.equal(found[name].magnitude, part.magnitude) and found[name].of_base == part.of_base
