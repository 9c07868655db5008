"""The last block leaves out products that nobody reads: how many, that nothing else changes, and where it does not."""

import comfy.model_management
import pytest
import torch
from support import adapters_for, brief_flux2, problem
from torch.utils.flop_counter import FlopCounterMode

from flux2_train.host.borrowed import attention, last_block, opaque, opaque_attention
from flux2_train.host.borrowed.borrow import Borrowed, borrow_as, training_mode
from flux2_train.host.borrowed.eight_bit import EightBit
from flux2_train.host.borrowed.libraries import USUAL, Library
from flux2_train.host.borrowed.routing import Route
from flux2_train.host.borrowed.velocity import velocity
from flux2_train.host.system import compiler
from flux2_train.planning.layout import BLOCKS, LEAF, OFF, SELECTIVE, Layout

TEXT, IMAGE, REFERENCE, RANK = 16, 6, 4, 2  # tokens of ``brief_flux2`` and ``problem``; rank of ``adapters_for``
PRODUCTS = torch.ops.aten.mm, torch.ops.aten.addmm
STREAMED = Layout(BLOCKS, streamed=(0, 2), grouped=LEAF)


@pytest.fixture
def last(monkeypatch):
    """The rows that the last block has read, in order; None is all of them. ``last.all`` lets it read all."""

    class Last(list):
        all = False

    found, original = Last(), last_block.read_rows

    def noting(*args):
        found.append(None if found.all else original(*args))
        return found[-1]

    monkeypatch.setattr(last_block, "read_rows", noting)
    return found


def step(model, adapters, case, how=None, routes=()):
    """Operations of a step's matrix products (attention has others), and its velocity and gradients."""
    x, t, conditions, weights = case
    how = how or Borrowed(Layout(OFF))
    torch.manual_seed(0)  # of dropout
    counter, borrowing = FlopCounterMode(display=False), borrow_as(model, adapters.deltas(), how)
    with torch.inference_mode(), borrowing as borrowed, training_mode(), counter:
        found = velocity(borrowed, x, t, conditions, routes)
        gradients = torch.autograd.grad((found * weights).mean(), adapters.trainable())
    assert not how.notes
    counts = counter.get_flop_counts()["Global"]
    return sum(counts.get(product, 0) for product in PRODUCTS), [found.detach(), *gradients]


def saved(last, *args, tolerance=1e-6, **kwargs):
    """The operations that a step saves; requires that it gives the same as one that saves none."""
    last.all = False
    fewer, ours = step(*args, **kwargs)
    last.all = True
    operations, whole = step(*args, **kwargs)
    for a, b in zip(ours, whole, strict=True):
        assert (a - b).norm() <= tolerance * b.norm()
    return operations - fewer


def left_out(model, case, recomputed=False):
    """The operations that are left out of the last block's products where its Linears carry plain LoRAs."""
    block, (x, _, conditions, _) = model.model.diffusion_model.single_blocks[-1], case
    others = x.shape[0] * (TEXT + REFERENCE * len(conditions[0].references))
    wide, own = block.linear1.out_features - 2 * block.hidden_size, block.linear2
    first, second = wide * block.hidden_size, own.out_features * own.in_features
    back = first + second + RANK * (wide + own.out_features)
    return 2 * others * (first + second + recomputed * first + back)


@pytest.mark.parametrize("batch, references", [(1, 0), (2, 2)])
def test_queries_and_the_mlp_of_text_and_references_are_left_out(last, batch, references):
    model, case = brief_flux2(), problem(batch, references, dtype=torch.float32)
    assert saved(last, model, adapters_for(model), case) == left_out(model, case)
    total = TEXT + IMAGE + REFERENCE * references
    assert last[0] == (TEXT, TEXT + IMAGE, total)


@pytest.mark.parametrize("layout", [Layout(BLOCKS), Layout(SELECTIVE), STREAMED])
def test_recomputed_and_streamed(last, layout):
    """A recomputation multiplies no row by ``linear2``, see ``test_unread``, and of ``linear1`` what is read."""
    model, case = brief_flux2(format="scaled_fp8_e4m3"), problem(1, 1, dtype=torch.float32)
    found = saved(last, model, adapters_for(model), case, Borrowed(layout))
    assert found == left_out(model, case, recomputed=True)


@pytest.mark.parametrize("kind", [{"dora": True}, {"kind": "lokr"}, {"kind": "loha"}, {"dropout": 0.2}])
def test_other_adapters(last, kind):
    model, case = brief_flux2(), problem(1, 1, dtype=torch.float32)
    assert saved(last, model, adapters_for(model, **kind), case, tolerance=1e-5) > 0


def test_compiled_blocks_leave_out_the_same(last, monkeypatch):
    monkeypatch.setattr(compiler, "BACKEND", "aot_eager")
    counted = []

    def counting(multiply):
        def product(x, weight, *bias):
            counted.append(2 * x[..., 0].numel() * weight.numel())
            return multiply(x, weight, *bias)

        return product

    library = Library(counting(USUAL.product), counting(USUAL.transposed), USUAL.over_rows)
    monkeypatch.setattr(opaque, "fastest", lambda _: library)
    model, case = brief_flux2(), problem(2, 1, dtype=torch.float32)
    adapters, how, operations = adapters_for(model), Borrowed(Layout(OFF), compiled=True), []
    for last.all in (False, True):
        counted.clear()
        found = step(model, adapters, case, how)[1]
        operations.append(sum(counted))
        for a, b in zip(found, step(model, adapters, case)[1], strict=True):
            assert (a - b).norm() <= 1e-5 * b.norm()
    assert operations[1] - operations[0] == left_out(model, case) and how.ran


@pytest.mark.parametrize("compiles, module", [(False, attention), (True, opaque_attention)])
def test_attention_has_the_queries_of_the_image_alone(last, monkeypatch, compiles, module):
    queries, original = [], module.attention_pytorch

    def noting(q, k, *args, **kwargs):
        queries.append((q.shape[2], k.shape[2]))
        return original(q, k, *args, **kwargs)

    monkeypatch.setattr(module, "attention_pytorch", noting)
    monkeypatch.setattr(compiler, "BACKEND", "eager")
    model, case = brief_flux2(), problem(1, 1, dtype=torch.float32)
    step(model, adapters_for(model), case, Borrowed(Layout(SELECTIVE), compiled=compiles))
    total = TEXT + IMAGE + REFERENCE
    assert queries[:3] == [(total, total), (total, total), (IMAGE, total)]  # double, single, the last one


def test_layers_that_are_compared_with_8_bits_leave_out_nothing(last):
    """Products in 8 bits have no zeros there."""
    model, case = brief_flux2(), problem(1, dtype=torch.float32)
    how = Borrowed(Layout(OFF))
    how.eight_bit = EightBit(model)
    with how.eight_bit.comparing() as found:
        assert saved(last, model, adapters_for(model), case, how) == 0
    assert all(agreement.cosine > 0.99 for agreement in found.values()) and "single_blocks.1.linear1" in found


def test_not_where_routes_or_other_nodes_may_read_it(last):
    model, case = brief_flux2(), problem(1, dtype=torch.float32)
    adapters = adapters_for(model)
    step(model, adapters, case, routes=[Route(2, 2, torch.tensor([[0, 3]]))])  # the last block sees two image tokens
    for replaced in (False, True):
        patched = model.clone()
        if replaced:
            patched.set_model_patch_replace(lambda args, extra: extra["original_block"](args), "dit", "single_block", 1)
        else:
            patched.set_model_attn1_output_patch(lambda out, _: out)
        step(patched, adapters, case)
    assert last == [None] * 3


def test_not_outside_of_training(last):
    """Previews run ComfyUI's own layers."""
    model, case = brief_flux2(), problem(1, dtype=torch.float32)
    with torch.inference_mode(), borrow_as(model, adapters_for(model).deltas(), Borrowed(Layout(OFF))) as borrowed:
        velocity(borrowed, *case[:3])
        assert not comfy.model_management.in_training
    assert last == [None]


def test_not_where_comfyui_does_not_say_where_the_text_ends(monkeypatch):
    monkeypatch.setattr(comfy.model_management, "in_training", True)
    known = {"img_slice": [TEXT, TEXT + IMAGE], last_block.IMAGE_TOKENS: IMAGE}
    assert last_block.read_rows(TEXT + IMAGE, 2, known) == (TEXT, TEXT + IMAGE, TEXT + IMAGE)
    del known["img_slice"]
    assert last_block.read_rows(TEXT + IMAGE, 2, known) is None
