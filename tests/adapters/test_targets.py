"""Which layers get an adapter, and of what rank."""

import pytest

from flux2_train.adapters.targets import PRESETS, ranks, select
from flux2_train.errors import UserError

BLOCKS = {"dev": (8, 48), "klein-9b": (8, 24), "klein-4b": (5, 20)}
DOUBLE = [f"{s}_{part}" for s in ("img", "txt") for part in ("attn.qkv", "attn.proj", "mlp.0", "mlp.2")]


def linears(double, single):
    """The Linears of a FLUX.2 with that many blocks, those beside the blocks included."""
    beside = ["img_in", "txt_in", "time_in.in_layer", "single_stream_modulation.lin", "final_layer.linear"]
    blocks = [f"double_blocks.{i}.{name}" for i in range(double) for name in DOUBLE]
    return beside + blocks + [f"single_blocks.{i}.linear{n}" for i in range(single) for n in (1, 2)]


@pytest.mark.parametrize(
    "flavour, preset, count",
    [
        ("dev", "all", 160), ("klein-9b", "all", 112), ("klein-4b", "all", 80),
        ("dev", "attention", 128), ("klein-9b", "attention", 80), ("klein-4b", "attention", 60),
        ("dev", "mlp", 128), ("klein-9b", "mlp", 80), ("klein-4b", "mlp", 60),
        ("dev", "tiny", 64), ("klein-9b", "tiny", 40), ("klein-4b", "tiny", 30),
    ],
)  # fmt: skip
def test_adapters_per_flavour_and_preset(flavour, preset, count):
    assert len(select(linears(*BLOCKS[flavour]), preset)) == count


@pytest.mark.parametrize("preset", PRESETS)
def test_nothing_beside_the_blocks_is_chosen(preset):
    assert all("_blocks." in name for name in select(linears(2, 3), preset))


def test_patterns_and_blocks_restrict():
    names = linears(3, 4)
    assert select(names, include="*.linear2") == [f"single_blocks.{i}.linear2" for i in range(4)]
    assert select(names, include="*img_attn*", exclude="*.qkv,double_blocks.0.*") == [
        f"double_blocks.{i}.img_attn.proj" for i in (1, 2)
    ]
    chosen = select(names, double_blocks="1", single_blocks="0-1, 3")
    assert {n.rsplit(".", 1)[0].split(".")[1] for n in chosen if "double" in n} == {"1"}
    assert {n.split(".")[1] for n in chosen if "single" in n} == {"0", "1", "3"}
    assert select(names, exclude="double_blocks.*") == [n for n in names if n.startswith("single_blocks")]


@pytest.mark.parametrize(
    "options, words",
    [
        ({"preset": "everything"}, "Unknown targets 'everything'"),
        ({"include": "*.linear9"}, "'\\*.linear9' fits no layer"),
        ({"preset": "tiny", "exclude": "*.proj"}, "'\\*.proj' fits no layer"),
        ({"double_blocks": "1-5"}, "double_blocks 3, 4, 5 are not in this model, which has 3"),
        ({"single_blocks": "first"}, "single_blocks is 'first'"),
        ({"single_blocks": "0-100000"}, "single_blocks is '0-100000'"),
        ({"include": "*.linear1", "exclude": "*"}, "leave no layer"),
    ],
)
def test_what_fits_nothing_is_named(options, words):
    with pytest.raises(UserError, match=words):
        select(linears(3, 4), **options)


def test_another_model_has_no_targets():
    with pytest.raises(UserError, match="not a FLUX.2 transformer"):
        select(["input_blocks.0.0", "middle_block.1.proj_in"])


def test_ranks_follow_the_last_fitting_override():
    names = select(linears(2, 2))
    found = ranks(names, 16, 8.0, "single_blocks.* = 4, *.linear2 = 32 : 1\n double_blocks.0.*=64")
    assert found["single_blocks.1.linear1"] == (4, 2.0)  # alpha keeps its ratio to the rank
    assert found["single_blocks.1.linear2"] == (32, 1.0)
    assert found["double_blocks.0.img_mlp.0"] == (64, 32.0)
    assert found["double_blocks.1.img_mlp.0"] == (16, 8.0)
    assert ranks(names, 16, 8.0) == dict.fromkeys(names, (16, 8.0))


@pytest.mark.parametrize("override", ["*.linear2", "*.linear2 = 0", "*.linear2 = 4 : x", "*.linear7 = 4"])
def test_overrides_that_cannot_be_are_named(override):
    with pytest.raises(UserError, match="linear"):
        ranks(select(linears(2, 2)), 16, 16.0, override)
