"""The library that multiplies in compiled blocks on a CPU: its products are right, and the faster one is used."""

import pytest
import torch
from support import adapters_for, brief_flux2, problem
from test_compiled import by_eager, compiled, require_equal

from flux2_train.host.borrowed import libraries, opaque
from flux2_train.host.borrowed.libraries import ONEDNN, USUAL, fastest
from flux2_train.host.system import compiler
from flux2_train.planning.layout import BLOCKS, Layout

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")


@needs_onednn
@pytest.mark.parametrize("rows", [(7,), (2, 5)])
@pytest.mark.parametrize("bias", [False, True])
def test_onednns_products_are_exact_up_to_rounding(rows, bias):
    """Against products in float64, with the bounds that torch's usual library keeps too."""
    generator = torch.Generator().manual_seed(0)
    x, grad, weight, added = (
        torch.randn(shape, generator=generator) for shape in ((*rows, 96), (*rows, 64), (64, 96), (64,))
    )
    added = added if bias else None
    expected = torch.nn.functional.linear(x.double(), weight.double(), added.double() if bias else None)
    back = grad.double() @ weight.double()
    for library in (USUAL, ONEDNN):
        found, found_back = library.product(x, weight, added), library.transposed(grad, weight)
        assert (found - expected).norm() < 1e-6 * expected.norm() and found.shape == (*rows, 64)
        assert (found_back - back).norm() < 1e-6 * back.norm() and found_back.shape == x.shape
        over_rows, narrow = library.over_rows(grad.flatten(0, -2), x.flatten(0, -2)), grad.double().flatten(0, -2).t()
        over_rows_expected = narrow @ x.double().flatten(0, -2)
        assert (over_rows - over_rows_expected).norm() < 1e-6 * over_rows_expected.norm() and over_rows.is_contiguous()


@needs_onednn
@pytest.mark.parametrize("faster", [False, True])
def test_the_faster_library_is_used(monkeypatch, faster):
    """The other one is made slow: it multiplies nine times."""

    def slow(library):
        def product(*args):
            for _ in range(8):
                library.product(*args)
            return library.product(*args)

        return product

    other = ("USUAL", USUAL) if faster else ("ONEDNN", ONEDNN)
    monkeypatch.setattr(libraries, other[0], other[1]._replace(product=slow(other[1])))
    monkeypatch.setattr(libraries, "_fastest_of_cpu", libraries._fastest_of_cpu.__wrapped__)
    found = fastest(torch.zeros(libraries.SMALL))
    assert (found is libraries.ONEDNN) == faster


@needs_onednn
def test_a_library_that_rounds_more_is_not_used(monkeypatch):
    """As oneDNN does where torch's settings let it multiply fp32 in bf16."""

    def coarse(x, weight, bias):
        return ONEDNN.product(x.bfloat16().float(), weight, bias)

    monkeypatch.setattr(libraries, "ONEDNN", ONEDNN._replace(product=coarse))
    monkeypatch.setattr(libraries, "FASTER", float("inf"))
    assert libraries._fastest_of_cpu.__wrapped__() is USUAL


def test_other_dtypes_and_devices_and_small_tensors_keep_torchs_own(monkeypatch):
    monkeypatch.setattr(libraries, "_fastest_of_cpu", lambda: ONEDNN)
    large = torch.zeros(libraries.SMALL)
    assert fastest(large) is ONEDNN
    assert all(fastest(each) is USUAL for each in (large.bfloat16(), large.to("meta"), large[1:]))


@pytest.mark.long
@needs_onednn
def test_compiled_blocks_use_it_and_give_the_same_gradients(monkeypatch):
    """The gradients of blocks that are not compiled, which multiply with torch's usual library."""
    calls = []

    def counted(which):
        function = getattr(ONEDNN, which)
        return lambda *args: calls.append(which) or function(*args)

    library = libraries.Library(*map(counted, libraries.Library._fields))
    monkeypatch.setattr(opaque, "fastest", lambda tensor: library)
    monkeypatch.setattr(compiler, "BACKEND", "aot_eager")
    model = brief_flux2()
    adapters, case = adapters_for(model), problem(2, 1, dtype=torch.float32)
    expected = by_eager(model, adapters, case)
    assert not calls
    (found,) = compiled(model, adapters, case, [Layout(BLOCKS)])
    require_equal(found, expected, case)
    assert set(calls) == set(libraries.Library._fields)
