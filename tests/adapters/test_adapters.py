"""The live adapters: how they start, what each option does, and going on from a LoRA."""

from contextlib import closing, nullcontext

import pytest
import torch
from support import adapters_for, brief_flux2, problem

from flux2_train.adapters import files, write
from flux2_train.adapters.live import NAME, Adapters, Site
from flux2_train.adapters.start import start_from
from flux2_train.errors import UserError
from flux2_train.events import Stepped
from flux2_train.host.borrowed.borrow import borrow, training_mode
from flux2_train.host.borrowed.velocity import velocity
from flux2_train.runs.prepare import new_trainer
from flux2_train.settings.adapter import AdapterSettings
from flux2_train.settings.training import TrainingSettings

KINDS = {
    "lora": {}, "rslora": {"rslora": True}, "dora": {"dora": True}, "loha": {"kind": "loha"}, "lokr": {"kind": "lokr"},
    "lokr of products": {"kind": "lokr", "lokr_factor": 2, "lokr_decompose_both": True},
}  # fmt: skip
A, B = "double_blocks.0.img_attn.qkv", "single_blocks.0.linear2"


def make(seed=0, rank=2, alpha=4.0, other_rank=None, **options):
    """Adapters on two Linears of 24 to 16 and 12 to 8."""
    sites = {A: Site(24, 16, rank, alpha), B: Site(12, 8, other_rank or rank, alpha)}
    return Adapters(
        sites, AdapterSettings(**options), seed, row_norms=lambda name: torch.ones(sites[name].out_features)
    )


def drawn(adapters):
    """With every parameter drawn anew."""
    with torch.no_grad():
        for parameter in adapters.trainable():
            parameter.normal_(generator=torch.Generator().manual_seed(parameter.numel()))
    return adapters


def output(adapters, name, x, weight):
    """What a Linear with that weight gives with its adapter."""
    y = x @ weight.T
    delta = adapters.deltas()[name](x, y, lambda dtype, device: nullcontext((weight.to(dtype), None)))
    return y if delta is None else y + delta


@pytest.mark.parametrize("kind", KINDS)
def test_fresh_adapters_change_nothing(kind):
    x, weight = torch.randn(3, 24), torch.nn.functional.normalize(torch.randn(16, 24), dim=1)
    torch.testing.assert_close(output(make(**KINDS[kind]), A, x, weight), x @ weight.T)


@pytest.mark.parametrize("kind", KINDS)
def test_disabled_adapters_are_absent(kind):
    adapters, x, weight = drawn(make(**KINDS[kind])), torch.randn(3, 24), torch.randn(16, 24)
    assert not torch.equal(output(adapters, A, x, weight), x @ weight.T)
    adapters.enabled = False
    assert torch.equal(output(adapters, A, x, weight), x @ weight.T)


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_the_same_start_and_leaves_the_global_one_alone(kind):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, two, other = (make(seed, **KINDS[kind]) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(a, b) for a, b in zip(one.trainable(), two.trainable(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.trainable(), other.trainable(), strict=True))


def test_rank_alpha_and_rslora_set_the_scale():
    adapters = make(rank=2, alpha=4.0, other_rank=8)
    assert adapters.parts()[A].scale == 2.0 and adapters.parts()[B].scale == 0.5
    assert adapters.parts()[B].down.shape == (8, 12)
    assert make(rank=4, alpha=4.0, rslora=True).parts()[A].scale == 2.0


def test_dropout_acts_in_a_step_only_and_from_its_own_seed():
    adapters, x, weight = drawn(make(dropout=0.5)), torch.randn(3, 24), torch.randn(16, 24)

    def at(step):
        with adapters.dropping(7, step):
            return output(adapters, A, x, weight)

    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again, second = at(1), at(1), at(2)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first, again) and not torch.equal(first, second)
    plain = output(adapters, A, x, weight)
    torch.testing.assert_close(plain, x @ (weight + adapters.parts()[A].delta()).T)
    part, many = adapters.parts()[A], x.expand(4000, 3, 24)
    with adapters.dropping(7, 1):
        mean = output(adapters, A, many, weight).mean(0)
    assert (mean - plain).abs().max() < 0.1 * (x @ part.delta().T).abs().max()  # inverted dropout keeps the mean


def test_lora_plus_lets_b_learn_faster():
    adapters = make(lora_plus=16.0)
    rates = {id(p): group["lr"] for group in adapters.groups(1e-4) for p in group["params"]}
    for name in (A, B):
        assert rates[id(adapters.layer(name).lora_A[NAME].weight)] == 1e-4
        assert rates[id(adapters.layer(name).lora_B[NAME].weight)] == pytest.approx(1.6e-3)
    assert len(rates) == len(adapters.trainable())
    assert make().groups(1e-4)[0]["lr"] == 1e-4 and len(make().groups(1e-4)) == 1


def test_compute_in_fp32_rounds_once_only():
    x, weight = torch.randn(3, 24).bfloat16(), torch.zeros(16, 24, dtype=torch.bfloat16)
    exact = x.float() @ drawn(make()).parts()[A].delta().T
    errors = {c: (output(drawn(make(compute=c)), A, x, weight).float() - exact).norm() for c in ("model", "fp32")}
    assert torch.equal(output(drawn(make(compute="fp32")), A, x, weight), exact.bfloat16())
    assert errors["model"] > errors["fp32"]


def test_loha_keeps_no_weight_change_for_backward():
    adapters, x = drawn(make(kind="loha")), torch.randn(3, 24, requires_grad=True)
    deltas = adapters.deltas()
    assert torch.Size((16, 24)) not in saved_by(lambda: deltas[A](x, torch.zeros(3, 16), None))
    assert torch.Size((16, 24)) in saved_by(lambda: adapters.part(A, torch.float32)(x))


def saved_by(work):
    """Shapes of all tensors that autograd keeps for the backward of ``work()``."""
    shapes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (shapes.append(t.shape), t)[1], lambda t: t):
        work().sum()
    return shapes


def test_a_frozen_path_before_the_first_adapter_is_not_differentiated():
    """The graph holds no Linear in front of the only adapter, and every one of its gradients is there."""
    model = brief_flux2()
    adapters = adapters_for(model)
    last = "single_blocks.1.linear2"
    deltas = {last: adapters.deltas()[last]}
    x, t, conditions, _ = problem(1, dtype=torch.float32)
    with borrow(model, deltas, checkpointing=False) as borrowed, training_mode():
        found = velocity(borrowed, x, t, conditions)
        layers = {node.layer for node in nodes(found.grad_fn) if "FrozenLinear" in node.name()}
        assert layers == {model.model.diffusion_model.final_layer.linear}
        gradients = torch.autograd.grad(found.sum(), list(adapters.layer(last).lora_A.parameters()))
    assert gradients[0].abs().sum() > 0


def nodes(root):
    """Every node of an autograd graph."""
    found, todo = set(), [root]
    while todo:
        node = todo.pop()
        if node is not None and node not in found:
            found.add(node)
            todo.extend(n for n, _ in node.next_functions)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_going_on_gives_the_same_weight_change(kind):
    first = drawn(make(alpha=4.0, **KINDS[kind]))
    second = make(seed=1, alpha=1.0, **KINDS[kind])
    start_from(second, first.parts())
    for name in (A, B):
        torch.testing.assert_close(second.parts()[name].delta(), first.parts()[name].delta())


@pytest.mark.parametrize("kind", ["lora", "loha", "dora"])
def test_a_raised_rank_starts_at_nothing_and_learns(kind):
    first, second = drawn(make(rank=2, **KINDS[kind])), make(seed=1, rank=5, **KINDS[kind])
    start_from(second, first.parts())
    x = torch.randn(3, 24)
    weight = torch.nn.functional.normalize(torch.randn(16, 24), dim=1)
    torch.testing.assert_close(output(second, A, x, weight), output(first, A, x, weight))
    output(second, A, x, weight).square().sum().backward()
    grown = {"lora": "lora_B", "dora": "lora_B", "loha": "hada_w1_b"}[kind]
    holder = getattr(second.layer(A), grown)[NAME]
    gradient = getattr(holder, "weight", holder).grad
    new = gradient[:, 2:] if kind != "loha" else gradient[2:]
    assert (new.abs().sum(0 if kind != "loha" else 1) > 0).all()


@pytest.mark.parametrize(
    "start, own, words",
    [
        ({"rank": 8}, {"rank": 4}, "rank 8 on double_blocks.0.img_attn.qkv; set the rank to 8 or more"),
        ({"kind": "loha"}, {}, "another kind of adapter"),
        ({"dora": True}, {}, "another kind of adapter"),
        ({"kind": "lokr", "lokr_factor": 2}, {"kind": "lokr", "lokr_factor": 4}, "factors of .* lokr_factor"),
    ],
)
def test_what_cannot_be_gone_on_from_is_named(start, own, words):
    with pytest.raises(UserError, match=words):
        start_from(make(**own), make(**start).parts())


def test_a_layer_outside_the_targets_is_named():
    parts = make().parts()
    with pytest.raises(UserError, match="trains single_blocks.7.linear1, which the chosen targets leave out"):
        start_from(make(), {"single_blocks.7.linear1": parts[A]})


@pytest.mark.parametrize(
    "options, words",
    [
        ({"kind": "ia3"}, "kind is 'ia3'"), ({"compute": "fp64"}, "compute is 'fp64'"), ({"dropout": 1.0}, "dropout"),
        ({"lora_plus": 0.5}, "lora_plus is 0.5; it must be at least 1"), ({"kind": "lokr", "dora": True},
        "dora does nothing for lokr"),
        ({"lokr_factor": 4}, "lokr_factor does nothing for lora"), ({"kind": "lokr", "lokr_factor": 1},
        "lokr_factor is 1"),
    ],
)  # fmt: skip
def test_options_that_cannot_act_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        AdapterSettings(**options)


def trainer(nano, robot, rank=2, **options):
    config = TrainingSettings(
        steps=2, rank=rank, learning_rate=1e-3, validation_items=0, adapter=AdapterSettings(**options)
    )
    return new_trainer(nano.model, robot.embeds, robot.latents, config)


def test_the_trainer_builds_the_adapters_that_were_asked_for(nano, robot):
    found = trainer(
        nano, robot, kind="lokr", include="*linear*", single_blocks="0-2", ranks="*.0.linear1 = 3", lokr_factor=4
    ).adapters
    assert set(found.sites) == {f"single_blocks.{i}.linear{n}" for i in range(3) for n in (1, 2)}
    assert found.sites["single_blocks.0.linear1"].rank == 3 and found.sites["single_blocks.1.linear1"].rank == 2
    assert found.config.kind == "lokr"


def test_the_trainer_starts_from_a_file(nano, robot, tmp_path):
    first = drawn(trainer(nano, robot, include="*.linear2").adapters).parts()
    files.save(write.tensors(first, "kohya", torch.float32), tmp_path / "first.safetensors", {})
    second = trainer(nano, robot, rank=3, start_from=str(tmp_path / "first.safetensors")).adapters.parts()
    for name, part in first.items():
        torch.testing.assert_close(second[name].delta(), part.delta())
    assert not second["single_blocks.0.linear1"].delta().any()


@pytest.mark.long(cases=2)
@pytest.mark.parametrize(
    "options", [{"dropout": 0.3}, {"dora": True}, {"kind": "loha"}, {"kind": "lokr"}, {"lora_plus": 9.0}], ids=str
)
def test_options_act_in_training_and_repeat(nano, robot, options):
    def learned(**options):
        run = trainer(nano, robot, include="*.5.linear2", **options)
        with torch.inference_mode(), closing(run.run()) as events:
            assert [e.step for e in events if isinstance(e, Stepped)] == [1, 2]
        return run.adapters.parts()["single_blocks.5.linear2"].delta()

    once = learned(**options)
    assert once.any()
    assert torch.equal(once, learned(**options))
    assert not torch.equal(once, learned())


def test_doras_norms_are_computed_once_while_weights_do_not_change():
    x, weight, fetches = torch.randn(3, 24), torch.randn(16, 24), []

    def base(dtype, device):
        fetches.append(dtype)
        return nullcontext((weight, None))

    adapters = drawn(make(dora=True))
    delta = adapters.deltas()[A]
    plain = delta(x, x @ weight.T, base)
    with adapters.unchanging():
        assert all(torch.equal(delta(x, x @ weight.T, base), plain) for _ in range(3))
        assert len(fetches) == 2
    drawn(adapters).layer(A).lora_B[NAME].weight.data.mul_(2)
    assert not torch.equal(delta(x, x @ weight.T, base), plain) and len(fetches) == 3
