"""Token routing on ComfyUI's own blocks: against an independent implementation, and what it does to single tokens."""

from dataclasses import replace

import pytest
import torch
from reference import Flux2
from support import adapters_for, brief_flux2, problem
from test_gradients import float64_model
from test_reference import changed_weights, plain_weights

from flux2_train.host.borrowed.borrow import Borrowed, borrow, borrow_as, training_mode
from flux2_train.host.borrowed.routing import Route, TokenRouting
from flux2_train.host.borrowed.velocity import velocity
from flux2_train.planning.layout import BLOCKS, OFF, SELECTIVE, Layout

IMAGE = 6  # tokens of ``problem``'s images
ROUTES = [
    Route(0, 2, torch.tensor([[0, 2, 5], [1, 2, 3]])),  # from the double block into the single ones
    Route(4, 4, torch.tensor([[3, 4], [0, 5]])),  # the last block
]


class Routed(Flux2):
    """The reference on one sample whose ``kept`` tokens are given for each route as (first, last, places)."""

    kept: list

    def double_block(self, at, image, text, modulation, angles):
        image, angles = self.enter(int(at.split(".")[1]), image, text.shape[1], angles)
        image, text = super().double_block(at, image, text, modulation, angles)
        return self.leave(int(at.split(".")[1]), image), text

    def single_block(self, at, x, modulation, angles):
        number, words = self.double + int(at.split(".")[1]), self.words
        image, angles = self.enter(number, x[:, words:], words, angles)
        x = super().single_block(at, torch.cat([x[:, :words], image], 1), modulation, angles)
        return torch.cat([x[:, :words], self.leave(number, x[:, words:])], 1)

    def enter(self, number, image, words, angles):
        self.words = words
        for first, last, kept in self.kept:
            if number == first:
                self.waiting, image = image, image[:, self.places(kept, image)]
            if first <= number <= last:
                angles = torch.cat([angles[:words], angles[words:][self.places(kept, self.waiting)]])
        return image, angles

    def leave(self, number, image):
        for _, last, kept in self.kept:
            if number == last:
                places = self.places(kept, self.waiting)
                rows = [
                    image[:, places.index(i)] if i in places else self.waiting[:, i]
                    for i in range(self.waiting.shape[1])
                ]
                return torch.stack(rows, 1)
        return image

    def places(self, kept, image):
        return [*kept, *range(IMAGE, image.shape[1])]


def by_reference(model, adapters, case):
    """Velocity and gradients, sample by sample in float64."""
    x, t, conditions, weights = case
    changes, parameters = changed_weights(adapters)
    outputs = []
    for i, condition in enumerate(conditions):
        net = Routed(plain_weights(model), changes)
        net.kept = [(route.first, route.last, route.kept[i].tolist()) for route in ROUTES]
        text = torch.nn.functional.pad(condition.embeds, (0, 0, 512 - condition.embeds.shape[1], 0)).double()
        references = [r.double() for r in condition.references]
        outputs.append(net(x[i : i + 1].double(), t[i : i + 1], text, references, condition.guidance))
    found = torch.cat(outputs)
    return found.detach(), torch.autograd.grad((found * weights).mean(), parameters)


def by_engine(model, adapters, case, layout=Layout(BLOCKS), routes=ROUTES):  # noqa: B008
    x, t, conditions, weights = case
    how = Borrowed(layout)
    with torch.inference_mode(), borrow_as(model, adapters.deltas(), how) as borrowed, training_mode():
        found = velocity(borrowed, x, t, conditions, routes)
        return found.detach(), torch.autograd.grad((found * weights).mean(), adapters.trainable())


@pytest.mark.long
@pytest.mark.parametrize("references", [0, 2])
def test_velocity_and_gradients_are_those_of_an_independent_computation(references):
    model = float64_model(single=4)
    adapters, case = adapters_for(model, dtype=torch.float64), problem(2, references)
    expected, gradients = by_reference(model, adapters, case)
    found, engine = by_engine(model, adapters, case)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(engine, gradients, strict=True):
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()  # core rounds rotary angles to fp32


@pytest.mark.long(cases=1)
@pytest.mark.parametrize("method", ["index", "index_timestep_zero"])
def test_every_layout_gives_the_same_bits(method):
    x, t, conditions, weights = problem(2, references=1, dtype=torch.float32)
    case = x, t, [replace(c, method=method) for c in conditions], weights
    model = brief_flux2(single=4)
    adapters = adapters_for(model)
    expected, gradients = by_engine(model, adapters, case, Layout(OFF))
    for layout in (Layout(BLOCKS), Layout(SELECTIVE), Layout(BLOCKS, every=2), Layout(BLOCKS, streamed=(0, 2, 3)),
                   Layout(BLOCKS, offload_activations=True)):  # fmt: skip
        found, engine = by_engine(model, adapters, case, layout)
        assert torch.equal(found, expected) and all(map(torch.equal, engine, gradients)), layout


@pytest.mark.long(cases=1)
@pytest.mark.parametrize("method", ["index", "index_timestep_zero"])
def test_a_batch_is_its_samples_one_by_one_and_all_tokens_kept_is_no_route(method):
    x, t, conditions, weights = problem(2, references=2, dtype=torch.float32)
    conditions = [replace(c, method=method) for c in conditions]
    model = brief_flux2(single=4)
    adapters = adapters_for(model)
    together, _ = by_engine(model, adapters, (x, t, conditions, weights))
    for i in range(2):
        case = x[i : i + 1], t[i : i + 1], conditions[i : i + 1], weights[i : i + 1]
        alone, _ = by_engine(model, adapters, case, routes=[route.rows(slice(i, i + 1)) for route in ROUTES])
        torch.testing.assert_close(alone[0], together[i], rtol=1e-5, atol=1e-5)
    every = [Route(0, 3, torch.arange(IMAGE).expand(2, -1))]
    kept, gradients = by_engine(model, adapters, (x, t, conditions, weights), routes=every)
    none, plain = by_engine(model, adapters, (x, t, conditions, weights), routes=())
    assert torch.equal(kept, none) and all(map(torch.equal, gradients, plain))
    assert not torch.allclose(together, none, atol=1e-3)


def streams(model, adapters, case, routes):
    """The image tokens that enter and leave each block, kept with their gradients."""
    entered, left, transformer = {}, {}, model.model.diffusion_model
    hooks = []
    for number, block in enumerate([*transformer.double_blocks, *transformer.single_blocks]):

        def before(_, args, kwargs, number=number):
            entered[number] = (kwargs["img"] if "img" in kwargs else args[0]).clone()

        def after(_, args, kwargs, output, number=number):
            left[number] = (output[0] if isinstance(output, tuple) else output).clone()

        hooks += [block.register_forward_pre_hook(before, with_kwargs=True),
                  block.register_forward_hook(after, with_kwargs=True)]  # fmt: skip
    try:
        x, t, conditions, _ = case
        with borrow(model, adapters.deltas(), False) as borrowed, training_mode():
            velocity(borrowed, x, t, conditions, routes)
    finally:
        for hook in hooks:
            hook.remove()
    return entered, left


def gradients_by_layer(adapters, gradients):
    of = {id(parameter): gradient for parameter, gradient in zip(adapters.trainable(), gradients, strict=True)}
    return {name: [of[id(parameter)] for parameter in adapters.of_layer(name)] for name in adapters.names}


def test_tokens_that_skip_pass_bit_by_bit_and_carry_gradients_to_the_blocks_before():
    """Only block 0 is adapted, and every token skips what follows but one: its gradient comes past the route."""
    model, case = brief_flux2(single=4), problem(1, dtype=torch.float32)
    adapters = adapters_for(model)
    routes = [Route(1, 3, torch.tensor([[4]]))]
    with torch.inference_mode():
        entered, left = streams(model, adapters, case, routes)
    words = entered[1].shape[1] - IMAGE
    skipping = [words + i for i in range(IMAGE) if i != 4]
    assert torch.equal(left[3][:, skipping], entered[1][:, skipping])
    assert not torch.equal(left[3][:, words + 4], entered[1][:, words + 4])
    assert torch.equal(entered[4], left[3])
    x, t, conditions, weights = case
    only = weights.clone().flatten(2)
    only[:, :, 4] = 0  # the loss sees skipping tokens only
    case = x, t, conditions, only.view_as(weights)
    _, gradients = by_engine(model, adapters, case, routes=[Route(1, 4, torch.tensor([[4]]))])
    at = gradients_by_layer(adapters, gradients)
    assert all(g.any() for g in at["double_blocks.0.img_mlp.2"])
    assert not any(g.any() for name in at if name.startswith("single") for g in at[name])  # nothing else reads them


def test_an_attention_mask_is_refused():
    routing = TokenRouting([Route(0, 0, torch.tensor([[0]]))], 2, torch.device("cpu"))
    with pytest.raises(NotImplementedError, match="attention mask"):
        routing.through(lambda *_: None, 0, (), {"img": None, "attn_mask": torch.ones(1)})
