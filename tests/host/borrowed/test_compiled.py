"""Blocks through torch.compile: the same gradients, one graph for each kind of block, a way out of each failure."""

import pytest
import torch
from comfy_api.torch_helpers import set_torch_compile_wrapper
from support import adapters_for, brief_flux2, loss_of, problem

from flux2_train.errors import UserError
from flux2_train.host.borrowed import frozen, lora_linear, opaque, opaque_attention, recompute
from flux2_train.host.borrowed.borrow import Borrowed, borrow, borrow_as, training_mode
from flux2_train.host.borrowed.routing import Route
from flux2_train.host.borrowed.velocity import velocity
from flux2_train.host.system import compiler
from flux2_train.planning.layout import BLOCKS, LEAF, OFF, SELECTIVE, Layout

KINDS = 2  # double and single blocks
STREAMED = Layout(BLOCKS, streamed=(0, 2), grouped=LEAF)
FORMATS = ["bf16", "scaled_fp8_e4m3", "nvfp4_awq", "int8_convrot", "convrot_w4a4"]
ADAPTERS = [{}, {"dora": True}, {"kind": "lokr"}, {"compute": "fp32"}]


class Graphs:
    """A backend that runs the graphs that torch gives it as they are, and keeps them."""

    def __init__(self):
        self.seen = []

    def __call__(self, graph, inputs):
        self.seen.append(graph)
        return graph.forward


@pytest.fixture
def graphs(monkeypatch):
    torch._dynamo.reset()  # it remembers which sizes have varied
    found = Graphs()
    monkeypatch.setattr(compiler, "BACKEND", found)
    return found


def gradients(borrowed, adapters, case):
    loss = loss_of(borrowed, case)
    return [loss.detach(), *torch.autograd.grad(loss, adapters.trainable())]


def by_eager(model, adapters, case):
    with borrow(model, adapters.deltas(), checkpointing=False) as borrowed, training_mode():
        return gradients(borrowed, adapters, case)


def require_equal(found, expected, case, tolerance=1e-5):
    """The loss is a sum of products of both signs, which nearly cancel: its error is measured by their size."""
    (loss, *ours), (exact_loss, *exact) = found, expected
    assert (loss - exact_loss).abs() <= tolerance * case[-1].norm()
    for a, b in zip(ours, exact, strict=True):
        assert (a - b).norm() <= tolerance * b.norm()


def compiled(model, adapters, case, layouts, how=None):
    """Whether each layout gives today's gradients; all of them in one borrowed model, as in a run."""
    how = how or Borrowed(layouts[0], compiled=True)
    with torch.inference_mode(), borrow_as(model, adapters.deltas(), how) as borrowed:  # as nodes run
        for layout in layouts:
            how.lay_out(layout)
            with training_mode():
                yield gradients(borrowed, adapters, case)
    assert not how.notes and not opaque._blocks  # nothing ran eagerly, and no layer is held
    assert not opaque_attention._kept


@pytest.mark.long
def test_gradients_are_those_of_blocks_that_are_not_compiled(monkeypatch):
    """Traced as for the compiler; streamed and resident share the graphs, where attention is kept there are others."""
    monkeypatch.setattr(compiler, "BACKEND", "aot_eager")
    model = brief_flux2(format="scaled_fp8_e4m3", single=3)
    adapters, case = adapters_for(model), problem(2, 1, dtype=torch.float32)
    expected = by_eager(model, adapters, case)
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for found in compiled(model, adapters, case, [STREAMED, Layout(SELECTIVE), Layout(OFF)]):
        require_equal(found, expected, case)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - before == 2 * KINDS


@pytest.mark.slow
def test_activations_in_host_memory(monkeypatch):
    monkeypatch.setattr(compiler, "BACKEND", "aot_eager")
    model = brief_flux2()
    adapters, case = adapters_for(model), problem(2, dtype=torch.float32)
    (found,) = compiled(model, adapters, case, [Layout(BLOCKS, offload_activations=True)])
    require_equal(found, by_eager(model, adapters, case), case)


@pytest.mark.slow
def test_routed_tokens(monkeypatch):
    """Blocks in the middle see fewer image tokens, drawn anew for each step."""
    monkeypatch.setattr(compiler, "BACKEND", "aot_eager")
    model = brief_flux2(single=3)
    adapters, (x, t, conditions, weights) = adapters_for(model), problem(2, 1, dtype=torch.float32)
    found = []
    for on in (False, True):
        how = Borrowed(Layout(BLOCKS), compiled=on)
        with borrow_as(model, adapters.deltas(), how) as borrowed, training_mode():
            routes = [Route(1, 2, torch.tensor([[0, 2, 5], [1, 2, 4]]))]
            loss = (velocity(borrowed, x, t, conditions, routes) * weights).mean()
            found.append([loss.detach(), *torch.autograd.grad(loss, adapters.trainable())])
        assert not how.notes
    require_equal(found[1], found[0], (weights,))


@pytest.mark.long
def test_one_graph_for_each_kind_and_one_more_for_all_buckets(graphs):
    model = brief_flux2(single=3)
    adapters, counts = adapters_for(model), []
    how = Borrowed(Layout(BLOCKS), compiled=True)
    with borrow_as(model, adapters.deltas(), how) as borrowed, training_mode():
        for references in range(4):
            case = problem(2, references, dtype=torch.float32)
            found = gradients(borrowed, adapters, case)
            counts.append(len(graphs.seen))
    require_equal(found, by_eager(model, adapters, case), case)
    assert not how.notes and counts == [KINDS, 2 * KINDS, 2 * KINDS, 2 * KINDS]
    for graph in graphs.seen:  # no weight, no LoRA matrix and no scale is a constant of a graph
        assert not [*graph.parameters(), *graph.buffers()]
        assert not [node for node in graph.graph.nodes if node.op == "get_attr"]


@pytest.mark.long
def test_passes_without_gradients_and_without_adapters(graphs):
    """As the prior of preservation: the same function of the weights as ComfyUI's own blocks."""
    model = brief_flux2()
    adapters, case = adapters_for(model), problem(1, dtype=torch.float32)
    with borrow_as(model, adapters.deltas(), Borrowed(Layout(BLOCKS), compiled=True)) as borrowed, training_mode():
        with torch.no_grad():
            adapted = loss_of(borrowed, case)
            adapters.enabled = False
            prior = loss_of(borrowed, case)
        off = loss_of(borrowed, case)  # with gradients, for which there are no adapters: not compiled
    assert len(graphs.seen) == KINDS and not off.requires_grad
    with borrow(model, adapters.deltas()) as borrowed, training_mode(), torch.no_grad():
        assert torch.equal(loss_of(borrowed, case), off)
        assert prior.item() == pytest.approx(off.item(), rel=1e-4)
        adapters.enabled = True
        assert adapted.item() == pytest.approx(loss_of(borrowed, case).item(), rel=1e-4)
    assert prior.item() != pytest.approx(adapted.item(), rel=1e-3)


def test_strength_and_scale_are_inputs():
    """The scale of a LoRA may change between steps, as a slider's does: it is a tensor, one for each value."""
    adapters = adapters_for(brief_flux2())
    delta = next(iter(adapters.deltas().values()))
    with adapters.at_strength(-0.5):
        assert delta.factors(torch.float32).scale == -1 and delta.sum_of(torch.float32, torch.device("cpu"), None)
    added = delta.sum_of(torch.float32, torch.device("cpu"), None)
    assert isinstance(added.part.scale, torch.Tensor) and added.part.scale == 2 and added.strength == 1


def test_attention_runs_once_where_its_output_is_kept(graphs, monkeypatch):
    """What it gave is given to the recomputation, and to backward, which never runs it. Elsewhere it is torch's own."""
    given, original = [], recompute.Giving.__torch_dispatch__

    def dispatch(self, function, types, args=(), kwargs=None):
        given.append(function in recompute.ATTENTION)
        return original(self, function, types, args, kwargs)

    monkeypatch.setattr(recompute.Giving, "__torch_dispatch__", dispatch)
    model = brief_flux2()
    adapters, case = adapters_for(model), problem(1, dtype=torch.float32)
    expected, counts = by_eager(model, adapters, case), []
    for found in compiled(model, adapters, case, [Layout(OFF), Layout(BLOCKS), Layout(SELECTIVE)]):
        require_equal(found, expected, case)
        counts.append(sum(given))
        given.clear()
    blocks = 3
    assert counts == [0, 0, 2 * blocks] and len(graphs.seen) == 2 * KINDS


@pytest.mark.slow
@pytest.mark.parametrize("layout", [Layout(OFF), Layout(SELECTIVE), STREAMED])
@pytest.mark.parametrize("options", ADAPTERS)
def test_inductor(layout, options):
    model = brief_flux2()
    adapters, case = adapters_for(model, **options), problem(2, 1, dtype=torch.float32)
    (found,) = compiled(model, adapters, case, [layout])
    require_equal(found, by_eager(model, adapters, case), case)


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_inductor_with_stored_weights(format):
    model = brief_flux2(format=format)
    adapters, case = adapters_for(model), problem(1, dtype=torch.float32)
    (found,) = compiled(model, adapters, case, [STREAMED])
    require_equal(found, by_eager(model, adapters, case), case)


def refused(model, adapters, case=None):
    """The sentences of a run whose blocks cannot be compiled, and which has today's bits all the same."""
    how, case = Borrowed(Layout(OFF), compiled=True), case or problem(1, dtype=torch.float32)
    with borrow_as(model, adapters.deltas(), how) as borrowed, training_mode():
        found = gradients(borrowed, adapters, case)
    assert all(torch.equal(a, b) for a, b in zip(found, by_eager(model, adapters, case), strict=True))
    assert how.uncompiled == {"DoubleStreamBlock", "SingleStreamBlock"}
    return how.notes


def test_loha_is_not_compiled():
    model = brief_flux2()
    notes = refused(model, adapters_for(model, kind="loha"))
    assert len(notes) == KINDS and all("runs as with compile 'off': LoHa's products" in note for note in notes)


def test_dropout_is_not_compiled():
    assert "draws random numbers" in refused(model := brief_flux2(), adapters_for(model, dropout=0.5))[0]


def test_blocks_whose_attention_another_node_has_patched_are_not_compiled():
    model = brief_flux2().clone()
    model.set_model_attn1_output_patch(lambda found, options: 1.5 * found)
    assert "another node has patched its attention" in refused(model, adapters_for(model))[0]


@pytest.mark.long
def test_what_the_compiler_cannot_do_runs_as_ever(monkeypatch):
    def broken(graph, inputs):
        raise NotImplementedError("no code for this card.\nmore lines")

    monkeypatch.setattr(compiler, "BACKEND", broken)
    model = brief_flux2()
    notes = refused(model, adapters_for(model))
    assert notes[0] == (
        "DoubleStreamBlock is not compiled and runs as with compile 'off': NotImplementedError: no code for this card."
    )


def test_comfyuis_own_compiling_is_not_touched():
    """A MODEL that its node has compiled is refused as before; ours marks no module of the MODEL as compiled."""
    model = brief_flux2()
    adapters = adapters_for(model)
    with borrow_as(model, adapters.deltas(), Borrowed(Layout(OFF), compiled=True)) as borrowed:
        assert type(borrowed.model.diffusion_model.double_blocks[0]).__name__ == "DoubleStreamBlock"
    with borrow_as(model, adapters.deltas(), Borrowed(Layout(OFF), compiled=True)):
        pass  # it may be borrowed again: nothing of the first time is left
    both = model.clone()
    set_torch_compile_wrapper(both, backend="inductor")
    with pytest.raises(UserError, match="The MODEL is compiled"), borrow_as(both, {}, Borrowed(Layout(OFF))):
        pass


def test_the_attention_operator_is_what_the_compiler_is_told():
    """Shapes, memory layout and gradients, checked by torch, with two heads: with one all layouts are the same."""
    opaque_attention.register()
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 7, 2, 8, generator=generator).transpose(1, 2).requires_grad_() for _ in range(3))
    ops, tests = torch.ops.flux2_train, ("test_schema", "test_autograd_registration", "test_faketensor")
    block = opaque.Call(0).tensor()
    torch.library.opcheck(ops.block_attention.default, (q, k, v, block), test_utils=tests)
    out, number = ops.block_attention(q, k, v, block)
    inputs = [tensor.detach() for tensor in (torch.randn_like(out), q, k, v, block, out, number)]
    torch.library.opcheck(ops.block_attention_gradients.default, inputs, test_utils=("test_schema", "test_faketensor"))
    del number  # only autograd holds it now, and the operator has to find its kept outputs all the same
    found = torch.autograd.grad(out, (q, k, v), inputs[0])
    exact = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    assert torch.equal(out, exact) and all(map(torch.equal, found, torch.autograd.grad(exact, (q, k, v), inputs[0])))


@pytest.mark.long
def test_gradients_that_nobody_needs_are_not_computed(monkeypatch):
    """Those of the first block's streams, before which no adapter acts: the same products as without compiling."""
    multiplied = []
    for module in (frozen, lora_linear, opaque):
        original = module.transposed_product

        def noting(layer, grad, *args, original=original):
            multiplied.append(id(layer))
            return original(layer, grad, *args)

        monkeypatch.setattr(module, "transposed_product", noting)
    monkeypatch.setattr(compiler, "BACKEND", "aot_eager")
    model = brief_flux2()
    adapters, case = adapters_for(model), problem(2, 1, dtype=torch.float32)
    expected = by_eager(model, adapters, case)
    eager = sorted(multiplied)
    multiplied.clear()
    (found,) = compiled(model, adapters, case, [Layout(OFF)])
    require_equal(found, expected, case)
    assert sorted(multiplied) == eager and len(set(eager)) < len(adapters.names)
