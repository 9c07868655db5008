"""Each part's two ways to the same thing: its weight change, and its contribution to a layer's output."""

import gc
import weakref

import pytest
import torch

from flux2_train.adapters.parts import Hadamard, Kronecker, LowRank, mapped

PARTS = {
    "lora": LowRank(torch.randn(3, 12), torch.randn(8, 3), 0.5),
    "loha": Hadamard(torch.randn(8, 2), torch.randn(2, 12), torch.randn(8, 2), torch.randn(2, 12), 0.7),
    "lokr": Kronecker((torch.randn(2, 3),), (torch.randn(4, 4),), 1.5),
    "lokr of products": Kronecker((torch.randn(2, 1), torch.randn(1, 3)), (torch.randn(4, 2), torch.randn(2, 4)), 1.5),
}


@pytest.mark.parametrize("name", PARTS)
def test_contribution_is_the_input_times_the_weight_change(name):
    part, x = PARTS[name], torch.randn(2, 5, 12)
    assert part.delta().shape == (8, 12)
    torch.testing.assert_close(part(x), x @ part.delta().T)


def test_weight_change_is_the_papers_formula():
    a, b, c, d = torch.randn(2, 3), torch.randn(4, 4), torch.randn(8, 2), torch.randn(2, 12)
    kron = Kronecker((a,), (b,), 2.0).delta()
    assert kron[5, 6] == 2.0 * a[1, 1] * b[1, 2]
    hadamard = Hadamard(c, d, c, d, 3.0).delta()
    torch.testing.assert_close(hadamard[5, 7], 3.0 * (c[5] @ d[:, 7]) ** 2)


def test_mapping_keeps_nothing_alive_until_the_next_collection():
    class Held:
        pass

    held = Held()
    alive = weakref.ref(held)
    gc.disable()
    try:
        mapped(PARTS["lora"], lambda tensor, held=held: tensor)
        del held
        assert alive() is None
    finally:
        gc.enable()
