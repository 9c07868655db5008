"""Streaming: no read before arrival, no overwriting before use, nothing fetched in vain, and no bit changed."""

from contextlib import contextmanager
from itertools import chain

import pytest
import torch
from delayed import Late, Stream
from hypothesis import given, settings
from hypothesis import strategies as st
from support import FORMATS, adapters_for, brief_flux2, given_back, loss_of, problem

from flux2_train.host.borrowed import streamed
from flux2_train.host.borrowed.borrow import Borrowed, borrow_as, linears, training_mode
from flux2_train.planning.layout import LEAF, Layout
from flux2_train.streaming.ring import Direct, Group, Ring

CPU = torch.device("cpu")
ALL = (0, 1, 2)  # blocks of the tiny model


def ring_of(count, via, slots=2, ahead=True, layers=2):
    """Groups of ``layers`` weights each; every weight holds its own number."""
    groups = [
        Group({f"{n}.{i}": [torch.full((3, 5), n * layers + i + 0.5), torch.tensor(n)] for i in range(layers)})
        for n in range(count)
    ]
    return Ring(groups, via, slots, ahead)


def names(count, layers=2):
    return [f"{n}.{i}" for n in range(count) for i in range(layers)]


def training_pass(count):
    """What one step reads: forward, then block by block recomputation and backward; with gradients or not."""
    forward = [(name, True) for name in names(count)]
    backward = []
    for n in reversed(range(count)):
        backward += [(f"{n}.0", True), (f"{n}.1", True), (f"{n}.1", False), (f"{n}.0", False)]
    return forward + backward


def plain_pass(count):
    return [(name, False) for name in names(count)]


def run(ring, reads, check):
    for name, grad in reads:
        with torch.set_grad_enabled(grad), ring.read(name) as (values, number):
            check(name, values, number)


def value_of(name):
    block, layer = map(int, name.split("."))
    return block * 2 + layer + 0.5


PASSES = {
    "train": [training_pass],
    "DOP": [training_pass, plain_pass, training_pass],
    "base first": [plain_pass, training_pass, plain_pass],
}


@pytest.mark.parametrize("kind", PASSES)
@pytest.mark.parametrize("count, slots", [(1, 2), (2, 2), (5, 2), (5, 3), (7, 1)])
def test_a_late_device_reads_what_has_arrived_and_overwrites_nothing_in_use(kind, count, slots):
    """Kernels run late on a stream of their own and look at the buffer then, not when they were started."""
    compute = Stream(0.001, 1)
    via = Late(0.001, compute=compute)
    ring, seen = ring_of(count, via, slots), []

    def kernel(name, values, number):
        def look():
            seen.append((name, values.unique().tolist(), number.item()))

        compute.add(look)

    reads = [r for _ in range(3) for make in PASSES[kind] for r in make(count)]
    run(ring, reads, kernel)
    via.finish()
    assert seen == [(name, [value_of(name)], int(name.split(".")[0])) for name, _ in reads]


@pytest.mark.parametrize("broken, copies, computation", [("wait", 0.02, 0.0), ("mark", 0.0, 0.01)])
def test_without_the_waits_that_test_fails(broken, copies, computation):
    """With waiting taken out, a late copy leaves poison to be read, and late computation reads what came next."""
    compute, wrong = Stream(computation, 1), []
    via = Late(copies, compute=compute)
    setattr(via, broken, lambda *_: None)

    def kernel(name, values, number):
        compute.add(lambda: wrong.append(values.unique().tolist() != [value_of(name)]))

    run(ring_of(5, via), training_pass(5) * 2, kernel)
    via.finish()
    assert any(wrong)


def test_memory_that_earlier_kernels_still_read_is_not_written():
    """An allocator hands out what was freed before the kernels that read it have run."""
    compute, before = Stream(0.02, 1), []

    class Reused(Late):
        def empty(self, size):
            buffer = super().empty(size).fill_(7)
            compute.add(lambda: before.append(buffer.unique().tolist()))
            return buffer

    via = Reused(0.0, compute=compute)
    run(ring_of(2, via), plain_pass(2), lambda *_: None)
    via.finish()
    assert before == [[7], [7]]


@pytest.mark.parametrize("kind", PASSES)
def test_after_one_step_everything_is_fetched_ahead(kind):
    """Forward, recomputation, backward and extra passes: the order is learned once, then nothing is waited for."""
    ring = ring_of(6, Direct(CPU))
    reads = [r for make in PASSES[kind] for r in make(6)]
    run(ring, reads * 2, lambda *_: None)
    missed = ring.missed
    run(ring, reads * 2, lambda *_: None)
    assert ring.missed == missed <= 3 * len(PASSES[kind])


def test_traffic_is_what_the_planner_says():
    """At both turns of a pass with gradients the ring's own content is used again."""
    for count in (3, 6):
        ring = ring_of(count, Direct(CPU))
        run(ring, training_pass(count) * 2, lambda *_: None)
        before = ring.copied
        run(ring, training_pass(count), lambda *_: None)
        assert ring.copied - before == 2 * (count - 2) * ring.groups[0].size


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=80), st.integers(1, 4), st.booleans())
def test_any_order_reads_right(order, slots, ahead):
    ring = ring_of(6, Direct(CPU), slots, ahead)
    for number, grad in order:
        name = f"{number}.1"
        with torch.set_grad_enabled(grad), ring.read(name) as (values, found):
            assert values.unique().item() == value_of(name) and found.item() == number


def test_two_weights_read_at_once_keep_their_buffers():
    ring = ring_of(6, Direct(CPU))
    with ring.read("0.0") as (first, _), ring.read("3.1") as (second, _):
        assert first.unique().item() == 0.5 and second.unique().item() == value_of("3.1")
        with pytest.raises(RuntimeError, match="every buffer"), ring.read("5.0"):
            pass


def test_a_failed_copy_leaves_a_ring_that_reads_right():
    for fail_at in range(1, 12):
        via = Late(0)
        via.fail_at = fail_at
        ring, failed = ring_of(4, via), 0
        for _ in range(3):
            try:
                run(ring, training_pass(4), lambda name, values, _: values.unique().item() == value_of(name) or 1 / 0)
            except torch.OutOfMemoryError:
                failed += 1
        assert failed == 1


# With ComfyUI's model


class Failed(Exception):
    pass


def results(model, adapters, case, how, interrupt=0):
    """Loss and gradients of a step with a pass of the base model; ``interrupt`` breaks one off in its middle first."""
    with borrow_as(model, adapters.deltas(), how) as borrowed, training_mode():
        if interrupt:
            with pytest.raises(Failed), failing_at(model, interrupt):
                loss_of(borrowed, case).backward()
            for parameter in adapters.trainable():
                parameter.grad = None
        adapters.enabled = False
        with torch.no_grad():
            base = loss_of(borrowed, case)
        adapters.enabled = True
        loss = loss_of(borrowed, case)
        return [base, loss.detach(), *torch.autograd.grad(loss, adapters.trainable())]


@contextmanager
def failing_at(model, reads):
    """Raise at that many reads of streamed weights from here."""
    sources = {layer: layer.__dict__[streamed.SOURCE] for layer in linears(model).values()
               if streamed.SOURCE in layer.__dict__}  # fmt: skip
    count = iter(chain(range(1, reads), [reads]))

    @contextmanager
    def failing(source):
        if next(count, reads) == reads:
            raise Failed
        with source() as weight:
            yield weight

    for layer, source in sources.items():
        layer.__dict__[streamed.SOURCE] = lambda source=source: failing(source)
    try:
        yield
    finally:
        for layer, source in sources.items():
            layer.__dict__[streamed.SOURCE] = source


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.drawn(cases=8)
@pytest.mark.long(cases=5)
@pytest.mark.parametrize("format", FORMATS)
def test_a_streamed_step_equals_a_resident_one_bit_by_bit(format):
    model = brief_flux2(format=format)
    adapters, case = adapters_for(model), problem(1, dtype=torch.float32)
    expected = results(model, adapters, case, Borrowed(Layout()))
    before = {name: layer.weight for name, layer in linears(model).items()}
    for layout in (Layout(streamed=ALL), Layout("off", streamed=ALL, grouped=LEAF)):
        assert equal(results(model, adapters, case, Borrowed(layout, Late())), expected)
    assert all(given_back(linears(model)[name].weight, weight) for name, weight in before.items())


@pytest.mark.drawn
@pytest.mark.long(cases=5)
@pytest.mark.parametrize("layout", [
    Layout(streamed=(1,)), Layout(streamed=ALL, per_group=2), Layout(streamed=ALL, ahead=False),
    Layout("selective", streamed=ALL), Layout(streamed=ALL, offload_activations=True),
])  # fmt: skip
@pytest.mark.parametrize("kind", [{}, {"dora": True}], ids=["lora", "dora"])
@pytest.mark.parametrize("via", [Late, lambda: None], ids=["late", "the device's way"])
def test_however_it_is_streamed(layout, kind, via):
    model = brief_flux2(format="scaled_fp8_e4m3")
    adapters, case = adapters_for(model, **kind), problem(2, references=1, dtype=torch.float32)
    expected = results(model, adapters, case, Borrowed(Layout()))
    assert equal(results(model, adapters, case, Borrowed(layout, via())), expected)


@pytest.mark.parametrize("reads", [3, 13, 18, 28])
def test_a_step_after_one_that_broke_off_is_right(reads):
    """In forward (12 reads), recomputation and backward."""
    model = brief_flux2()
    adapters, case = adapters_for(model), problem(1, dtype=torch.float32)
    expected = results(model, adapters, case, Borrowed(Layout()))
    assert equal(results(model, adapters, case, Borrowed(Layout(streamed=ALL), Late()), reads), expected)


def test_the_layout_can_change_between_steps():
    model = brief_flux2()
    adapters, case = adapters_for(model), problem(1, dtype=torch.float32)
    expected, how = results(model, adapters, case, Borrowed(Layout()))[1:], Borrowed(Layout("off"))
    with borrow_as(model, adapters.deltas(), how) as borrowed, training_mode():
        for layout in (Layout(streamed=ALL), Layout("selective", streamed=(0,)), Layout()):
            how.lay_out(layout)
            loss = loss_of(borrowed, case)
            assert equal([loss.detach(), *torch.autograd.grad(loss, adapters.trainable())], expected)
            there = sum(streamed.SOURCE in layer.__dict__ for layer in linears(model).values())
            assert there == {3: 12, 1: 8, 0: 0}[len(layout.streamed)]
    assert not any(streamed.SOURCE in layer.__dict__ for layer in linears(model).values())


def test_a_preview_in_between_runs_on_streamed_weights():
    """Outside of a step, too, a streamed layer finds its weight: with the LoRA, without autograd."""
    model = brief_flux2(format="int8")
    adapters, case = adapters_for(model), problem(1, dtype=torch.float32)
    with borrow_as(model, adapters.deltas(), Borrowed(Layout(streamed=ALL), Late())) as borrowed:
        with training_mode(), torch.no_grad():
            expected = loss_of(borrowed, case)
        with torch.inference_mode():
            assert torch.allclose(loss_of(borrowed, case), expected)


@pytest.mark.long
@pytest.mark.parametrize("plain", [0, 1, 2])
@pytest.mark.parametrize("checkpointing", ["blocks", "off"])
def test_of_a_model_too_everything_is_fetched_ahead_after_two_steps(plain, checkpointing):
    """With passes of the base model mixed in. Weights are read inside autograd functions, where gradients are off."""
    model = brief_flux2(single=4)
    adapters, case = adapters_for(model), problem(1, dtype=torch.float32)
    how, missed = Borrowed(Layout(checkpointing, streamed=(0, 1, 2, 3, 4))), []
    with borrow_as(model, adapters.deltas(), how) as borrowed, training_mode():
        for _ in range(5):
            for _ in range(plain):
                with torch.no_grad():
                    loss_of(borrowed, case)
            torch.autograd.grad(loss_of(borrowed, case), adapters.trainable())
            missed.append(how.streamed.ring.missed)
    assert missed[0] and missed[2:] == [missed[1]] * 3
