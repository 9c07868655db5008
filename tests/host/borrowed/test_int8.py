"""Products in int8 against float64: errors of at most half a step of each quantised number, in every stored format."""

import pytest
import torch
from counted import META, Live
from support import adapters_for, brief_flux2, problem
from test_compiled import gradients
from test_reference import _plain as plain

from flux2_train.host.borrowed import int8
from flux2_train.host.borrowed.borrow import Borrowed, borrow_as, linears, training_mode
from flux2_train.host.borrowed.eight_bit import EightBit
from flux2_train.host.borrowed.frozen import numbers, product, transposed_product
from flux2_train.host.system import compiler
from flux2_train.planning.estimate import IN_INT8
from flux2_train.planning.layout import BLOCKS, LEAF, OFF, Layout

CPU = torch.device("cpu")
NAME = "single_blocks.0.linear2"  # (128, 512)
AS_STORED = {"int8": 0, "int8_convrot": 64}  # the group that is rotated; of other formats every weight is rotated
FORMATS = ["fp32", "bf16", "scaled_fp8_e4m3", "mxfp8", "nvfp4", "convrot_w4a4", *AS_STORED]
STREAMED = Layout(BLOCKS, streamed=(0, 2), grouped=LEAF)


def hadamard(size):
    four, whole = torch.ones(4, 4).double() - 2 * torch.eye(4).flip(0), torch.ones(1, 1).double()
    while len(whole) < size:
        whole = torch.kron(whole, four)
    return whole / size**0.5


def turned(matrix, group):
    return (matrix.unflatten(1, (-1, group)) @ hadamard(group)).flatten(1) if group else matrix


def step_of(rows):
    """The distance of the numbers that a row can have in int8."""
    return rows.abs().amax(1, keepdim=True) / 127


def bounds(x, grad, weight, format):
    """The largest error of each output and, as the norm of a row, of the input's gradient; all in float64."""
    x, weight = (turned(each, AS_STORED.get(format, 64)) for each in (x, weight))
    scales = step_of(weight.view(1, -1)).expand(len(weight), 1) if format == "int8" else step_of(weight)
    of_x, of_weight = step_of(x) / 2, (0 if format in AS_STORED else scales / 2) * torch.ones_like(weight)
    forward = of_x * (weight.abs() + of_weight).sum(1) + x.abs() @ of_weight.T
    folded = step_of(grad * scales.T) / 2  # the scales are multiplied into the gradient first
    backward = folded @ ((weight.abs() + of_weight) / scales).sum(0, keepdim=True) + grad.abs() @ of_weight
    return forward, backward.norm(dim=1)


def eight_bit(model, layout=None, **how):
    """How a model is borrowed with all its layers in 8 bits."""
    found = Borrowed(layout or Layout(OFF), **how)
    found.eight_bit = EightBit(model)
    found.eight_bit.chosen = found.eight_bit.possible
    return found


def drawn(rows, columns, seed):
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    x[0] *= 1000  # has no influence on other tokens
    return x


@pytest.mark.parametrize("format", FORMATS)
def test_errors_are_half_steps(format):
    model = brief_flux2(format=format)
    layer, how = linears(model)[NAME], eight_bit(model)
    x, grad = drawn(19, layer.in_features, 1), drawn(19, layer.out_features, 2)
    with borrow_as(model, {}, how), training_mode(), how.eight_bit.acting(), torch.no_grad():
        weight, y, dx = plain(layer.weight).double(), product(layer, x), transposed_product(layer, grad)
        how.eight_bit.chosen = ()
        exact = product(layer, x)
    x, grad = x.double(), grad.double()
    forward, backward = bounds(x, grad, weight, format)
    rounding = 1 + 1e-4
    assert ((y.double() - x @ weight.T).abs() <= rounding * forward + 1e-6 * exact.abs().amax(1, keepdim=True)).all()
    of_dx = (dx.double() - grad @ weight).norm(dim=1)
    assert (of_dx <= rounding * backward + 1e-6 * dx.norm(dim=1)).all()
    assert not torch.equal(y, exact)
    for own, right in ((y, x @ weight.T), (dx, grad @ weight)):
        errors = (own.double() - right).norm(dim=1) / right.norm(dim=1)
        assert (errors < 0.03).all()  # in every token, also beside one that is a thousand times as large


@pytest.mark.parametrize("format", AS_STORED)
def test_weights_stored_in_int8_are_used_as_they_are(format):
    """Inputs that are whole numbers then give what the stored weight gives, without any error of their own."""
    model, group = brief_flux2(format=format), AS_STORED[format]
    layer, how = linears(model)[NAME], eight_bit(model)
    whole = torch.randint(-127, 128, (17, layer.in_features), generator=torch.Generator().manual_seed(0)).double()
    whole[:, 0] = 127
    with borrow_as(model, {}, how), training_mode(), how.eight_bit.acting(), torch.no_grad():
        with numbers(layer, torch.float32, CPU) as (weight, bias):
            assert weight.values.data_ptr() == layer.weight._qdata.data_ptr() and bias is None
            assert weight.group == group
        x = turned(whole, group)
        exact = x @ plain(layer.weight).double().T
        assert (product(layer, x.float()) - exact).norm() <= 1e-6 * exact.norm()


@pytest.mark.parametrize(("width", "group"), [(512, 64), (192, 64), (96, 16), (40, 0)])
def test_a_weight_is_rotated_where_its_width_allows(width, group):
    """Products against those of integers that explicit rotations give in float64."""
    x, weight, grad = drawn(19, width, 1).double(), drawn(96, width, 2).double(), drawn(19, 96, 3).double()
    found = int8.quantised(weight.float())
    assert found.group == int8.group_of(width) == group
    rotated = turned(weight, group)
    scales = step_of(rotated)
    values = (rotated / scales).round()
    assert (found.scales - scales).abs().max() <= 1e-5 * scales.max()
    assert (found.values != values).float().mean() < 1e-3 and (found.values - values).abs().max() <= 1
    tokens, folded = turned(x, group), grad * scales.T
    y = (tokens / step_of(tokens)).round() @ values.T * step_of(tokens) * scales.T
    dx = turned((folded / step_of(folded)).round() @ values * step_of(folded), group)
    own = int8.product(x.float(), found), int8.transposed_product(grad.float(), found)
    for one, right in zip(own, (y, dx), strict=True):
        assert ((one - right).norm(dim=1) <= 2e-3 * right.norm(dim=1)).all()


@pytest.mark.parametrize("group", [16, 64, 256])
def test_rotations_are_orthonormal(group):
    x = drawn(5, 512, 0)
    once = int8._rotated(x, group, torch.empty_like(x))
    assert torch.allclose(once.double(), turned(x.double(), group), rtol=1e-5, atol=1e-5 * x.abs().max())
    assert torch.allclose(once.norm(dim=1), x.norm(dim=1), rtol=1e-5)
    assert torch.allclose(int8._rotated(once, group, torch.empty_like(x)), x, rtol=1e-4, atol=1e-5 * x.abs().max())
    half = int8._rotated(x.bfloat16(), group, torch.empty_like(x))
    assert half.dtype == torch.bfloat16 and (half - once).norm() <= 1e-2 * once.norm()
    huge = 6e4 * hadamard(group)[:2].sign().half()  # would be too large for fp16
    assert int8._rotated(huge, group, torch.empty(2, group)).isfinite().all()


def test_a_channel_of_large_numbers_costs_no_bits(monkeypatch):
    """32 times as large as the others, with weights as much smaller: rotated rows are close, others are not."""
    generator = torch.Generator().manual_seed(0)
    x, weight, grad = (torch.randn(each, generator=generator) for each in ((64, 512), (96, 512), (64, 96)))
    x[:, 7], weight[:, 7] = 32 * x[:, 7], weight[:, 7] / 32
    errors = []
    for _ in range(2):
        numbers_of = int8.quantised(weight)
        pairs = (int8.product(x, numbers_of), x @ weight.T), (int8.transposed_product(grad, numbers_of), grad @ weight)
        errors.append([((own - right).norm() / right.norm()).item() for own, right in pairs])
        monkeypatch.setattr(int8, "group_of", lambda width: 0)
    (y, dx), (plain_y, plain_dx) = errors
    assert y < 0.02 and dx < 0.02 and plain_y > 0.05 and dx <= 1.05 * plain_dx


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(2304, 256), (256, 1024), (256, 256)])
def test_the_planner_counts_what_is_alive_on_a_card(monkeypatch, dtype, shape):
    """Beside what is returned, of many tokens."""
    most = 1 << 16
    monkeypatch.setattr(int8, "AT_ONCE", most)
    own, x, grad = (torch.empty(each, dtype=dtype, device=META) for each in (shape, (4096, shape[1]), (4096, shape[0])))
    weight = int8.quantised(own)  # makes the small matrix of the rotation
    for function, arguments in (
        (int8.quantised, (own,)), (int8.product, (x, weight)), (int8.transposed_product, (grad, weight))
    ):  # fmt: skip
        with Live() as live:
            returned = function(*arguments)
        kept = returned.values if function is int8.quantised else returned
        assert 4 * most < live.most - kept.nbytes <= (IN_INT8 + 0.1) * most


def test_a_row_that_is_not_finite_stays_so():
    weight = int8.quantised(torch.randn(32, 32, generator=torch.Generator().manual_seed(0)))
    x = torch.ones(3, 32)
    x[0, 5], x[1, 7] = torch.inf, torch.nan
    found = int8.product(x, weight)
    assert not found[0].isfinite().any() and not found[1].isfinite().any() and found[2].isfinite().all()
    assert torch.equal(int8.product(torch.zeros(2, 32), weight), torch.zeros(2, 32))


def test_large_matrices_are_converted_in_parts(monkeypatch):
    x, weight = drawn(50, 64, 1), int8.quantised(drawn(96, 64, 2))
    at_once = int8.product(x, weight), int8.transposed_product(drawn(50, 96, 3), weight)
    monkeypatch.setattr(int8, "AT_ONCE", 2000)
    monkeypatch.setattr(int8, "IN_CACHE", 300)
    again = int8.quantised(drawn(96, 64, 2))
    assert torch.equal(again.values, weight.values) and torch.equal(again.scales, weight.scales)
    assert torch.equal(int8.product(x, weight), at_once[0])
    assert torch.equal(int8.transposed_product(drawn(50, 96, 3), weight), at_once[1])


def test_few_rows_are_filled_up_where_a_card_wants_more(monkeypatch):
    seen = []
    multiply = torch._int_mm
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: (seen.append(a.shape), multiply(a.to(CPU), b.to(CPU)))[1])
    a = torch.ones(5, 32, dtype=torch.int8)
    assert int8._integers(a, a.t()).shape == (5, 5) and seen.pop() == (5, 32)
    fake = torch.ones(5, 32, dtype=torch.int8, device="meta")
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: (seen.append(a.shape), a.new_empty(len(a), 5))[1])
    assert int8._integers(fake, fake.t()).shape == (5, 5) and seen == [(32, 32)]


def test_what_a_device_cannot_do_is_told(monkeypatch):
    assert int8.problem(CPU) == ""
    int8.problem.cache_clear()

    def refused(a, b):
        raise NotImplementedError("'_int_mm' is not there for this card.\nmore lines")

    monkeypatch.setattr(torch, "_int_mm", refused)
    assert int8.problem(CPU) == "NotImplementedError: '_int_mm' is not there for this card"
    int8.problem.cache_clear()
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: a.int() @ b.int() + 1)
    assert int8.problem(CPU) == "it computes wrong numbers"
    int8.problem.cache_clear()


def learned(model, adapters, case, layout, on=True, **how):
    found = eight_bit(model, layout, **how)
    with torch.inference_mode(), borrow_as(model, adapters.deltas(), found) as borrowed, training_mode():
        found.eight_bit.acts = on
        return gradients(borrowed, adapters, case)


@pytest.mark.long(cases=1)
@pytest.mark.parametrize("options", [{}, {"dora": True}, {"kind": "lokr"}, {"kind": "loha"}])
def test_streamed_recomputed_and_resident_agree_and_exact_keeps_its_bits(options):
    model = brief_flux2(format="int8_convrot" if not options else "fp32")
    adapters, case = adapters_for(model, **options), problem(2, 1, dtype=torch.float32)
    resident = learned(model, adapters, case, Layout(OFF))
    for layout in (Layout(BLOCKS), STREAMED):
        assert all(map(torch.equal, learned(model, adapters, case, layout), resident))
    off = learned(model, adapters, case, Layout(OFF), on=False)
    with borrow_as(model, adapters.deltas(), Borrowed(Layout(OFF))) as borrowed, training_mode():
        exact = gradients(borrowed, adapters, case)
    assert all(map(torch.equal, off, exact)) and not any(map(torch.equal, resident[1:], exact[1:]))
    whole, other = (torch.cat([g.flatten() for g in each[1:]]) for each in (exact, resident))
    assert torch.cosine_similarity(whole, other, dim=0) > 0.99
    assert all("flux2_train_eight_bit" not in layer.__dict__ for layer in linears(model).values())


@pytest.mark.long
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_blocks_multiply_in_8_bits_too(monkeypatch, backend):
    """With the graphs as they are traced, and as the compiler's C++."""
    monkeypatch.setattr(compiler, "BACKEND", backend)
    model = brief_flux2(single=1)
    adapters, case = adapters_for(model), problem(2, 1, dtype=torch.float32)
    eager = learned(model, adapters, case, Layout(BLOCKS))
    compiled = learned(model, adapters, case, Layout(BLOCKS), compiled=True)
    # A value that is rounded the other way moves by a step, so that they are not equal to fp32's rounding
    for a, b in zip(compiled[1:], eager[1:], strict=True):
        assert (a - b).norm() <= 2e-2 * b.norm()
    exact = learned(model, adapters, case, Layout(BLOCKS), on=False)
    errors = [torch.cat([(a - b).flatten() for a, b in zip(way[1:], exact[1:], strict=True)]).norm().item()
              for way in (eager, compiled)]  # fmt: skip
    assert errors[1] == pytest.approx(errors[0], rel=0.2)


def test_layers_that_stay_exact():
    """A LoRA of ComfyUI's, a scale on the input, another pack's layer, and sizes that int8 products lack."""
    model = brief_flux2()
    every = EightBit(model)
    inside = [name for name in linears(model) if "_blocks." in name]
    assert list(every.possible) == inside and every.are == len(inside) == 12
    model.add_patches({f"diffusion_model.{NAME}.weight": (torch.zeros(1),)})
    linears(model)["single_blocks.0.linear1"].__class__ = type("GGUFLinear", (torch.nn.Linear,), {})
    found = EightBit(model)
    assert set(inside) - set(found.possible) == {NAME, "single_blocks.0.linear1"} and found.are == 12
    assert not EightBit(brief_flux2(format="nvfp4_awq")).possible
    assert int8.fits(64, 32) and not int8.fits(64, 40) and not int8.fits(40, 64)


def test_kept_numbers_are_made_once_and_change_no_bit(monkeypatch):
    """Of weights that are not streamed, and not stored in int8 anyway; gone when the model is given back."""
    made, quantised = [], int8.quantised
    monkeypatch.setattr(int8, "quantised", lambda weight: (made.append(weight.shape), quantised(weight))[1])
    model = brief_flux2(format="scaled_fp8_e4m3")
    adapters, case = adapters_for(model), problem(1, dtype=torch.float32)
    found = {}
    for layout in (Layout(BLOCKS), STREAMED):
        for keeps in (False, True):
            how = eight_bit(model, layout)
            how.eight_bit.keep(keeps)
            made.clear()
            with borrow_as(model, adapters.deltas(), how) as borrowed, training_mode(), how.eight_bit.acting():
                gradients(borrowed, adapters, case)
                found[layout, keeps] = gradients(borrowed, adapters, case), len(made), len(how.eight_bit.kept)
                how.eight_bit.keep(False)
                assert not how.eight_bit.kept
    resident, streamed = (found[layout, True] for layout in (Layout(BLOCKS), STREAMED))
    assert all(torch.equal(*both) for both in zip(resident[0], found[Layout(BLOCKS), False][0], strict=True))
    assert resident[1:] == (12, 12) and found[Layout(BLOCKS), False][2] == 0
    assert streamed[2] == 2 and streamed[1] > 12 and found[STREAMED, False][1] > streamed[1]
    sizes = [layer.in_features * layer.out_features for n, layer in linears(model).items() if "_blocks." in n]
    assert how.eight_bit.copies == sum(sizes) and EightBit(brief_flux2(format="int8")).copies == 0
