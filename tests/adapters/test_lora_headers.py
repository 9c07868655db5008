"""What other programs need beside the matrices: ranks in the header for diffusers, alphas for OneTrainer."""

import json

import pytest
import torch
from support import tiny_flux2, weights_of

from flux2_train.adapters import dora, files, peft_config, read
from flux2_train.adapters.names import in_diffusers
from flux2_train.adapters.parts import Hadamard, Kronecker, LowRank
from flux2_train.host.lora import apply as lora

ALL = ("comfyui", "diffusers", "kohya", "peft")


@pytest.fixture(scope="module")
def model():
    return tiny_flux2()


@pytest.fixture(scope="module")
def weights(model):
    return weights_of(model)


def in_blocks(weights):
    return [name for name in weights if "_blocks." in name]


def low_rank(weights, rank_of, magnitudes=False):
    """LoRAs of the ranks ``rank_of(place, name)``, or DoRAs in the paper's form."""
    torch.manual_seed(0)
    parts = {}
    for place, name in enumerate(in_blocks(weights)):
        (out, into), rank = weights[name].shape, rank_of(place, name)
        m = weights[name].norm(dim=1) * (1 + 0.2 * torch.randn(out)) if magnitudes else None
        parts[name] = LowRank(0.1 * torch.randn(rank, into), torch.randn(out, rank), 0.5, m)
    return parts


def saved(parts, weights_of, tmp_path, format, precision="fp32"):
    exported = files.export(parts, format, precision, weights=weights_of)
    return files.save_as(exported, files.free_path(tmp_path, "a", format), {})


def header(path):
    return json.loads(read.header(path).get(peft_config.HEADER, "{}"))


def varied(place, name):
    return 2 + place % 3


def alike(place, name):
    return 3


def parts_of_q_k_and_v(weights):
    """What a file with q, k and v apart becomes: rank 9 where they are fused, 3 elsewhere."""
    parts = low_rank(weights, alike)
    for name in [name for name in parts if name.endswith("qkv")]:
        ups = [torch.randn(len(weights[name]) // 3, 3) for _ in range(3)]
        parts[name] = LowRank(0.1 * torch.randn(9, weights[name].shape[1]), torch.block_diag(*ups), 0.5)
    return parts


PARTS = {
    "one rank": lambda weights: low_rank(weights, alike),
    "several ranks": lambda weights: low_rank(weights, varied),
    "q, k and v apart": parts_of_q_k_and_v,
}


@pytest.mark.parametrize("format", ALL)
@pytest.mark.parametrize("which", PARTS)
def test_the_ranks_of_diffusers_layers_are_in_the_header_if_they_differ(model, weights, tmp_path, which, format):
    parts = PARTS[which](weights)
    found = header(saved(parts, lora.weights(model), tmp_path, format))
    if which == "one rank" or (which == "q, k and v apart" and format == "kohya"):  # there diffusers takes them apart
        assert not found
        return
    expected = {stem: len(part.down) for name, part in parts.items() for stem in in_diffusers(name)[0]}
    assert sorted(found["transformer.target_modules"]) == sorted(expected)
    most = found["transformer.r"]
    for key in ("rank_pattern", "alpha_pattern"):
        assert {**dict.fromkeys(expected, most), **found[f"transformer.{key}"]} == expected
    assert found["transformer.lora_alpha"] == most and not found["transformer.use_dora"]


@pytest.mark.parametrize("format", ALL)
@pytest.mark.parametrize("which", PARTS)
def test_our_own_reader_is_not_misled_by_that_header(model, weights, tmp_path, which, format):
    parts = PARTS[which](weights)
    found = lora.read(model, read.load(saved(parts, lora.weights(model), tmp_path, format))).parts
    for name, part in parts.items():
        torch.testing.assert_close(found[name].delta(), part.delta(), rtol=1e-4, atol=1e-5)


def merged_by_diffusers(weights, path):
    """Every weight with the file in it, by diffusers' names, as its own loader for FLUX.2 and peft put it there."""
    pytest.importorskip("diffusers", minversion="0.36", reason="diffusers, a development requirement, is missing")
    from diffusers.loaders import Flux2LoraLoaderMixin as Loader
    from peft.tuners.tuners_utils import BaseTunerLayer

    from bench.as_diffusers import diffusers_transformer

    state, metadata = Loader.lora_state_dict(
        path.parent, weight_name=path.name, local_files_only=True, return_lora_metadata=True
    )
    transformer = diffusers_transformer({name: w.clone() for name, w in weights.items()})
    Loader.load_lora_into_transformer(state, transformer, metadata=metadata)
    found = {}
    for name, module in transformer.named_modules():
        if isinstance(module, BaseTunerLayer):
            module.merge()
            found[f"{name}.weight"] = module.get_base_layer().weight.detach()
    return found


def diffusers_error(model, parts, path):
    """The largest difference of any layer's weight, as a share of what the parts change there."""
    from bench.as_diffusers import diffusers_weights

    with torch.inference_mode(False):
        before = {name: w.detach().clone() for name, w in model.model.diffusion_model.state_dict().items()}
    keys = [f"{name}.weight" for name in parts]
    after = diffusers_weights({f"{n}.weight": before[f"{n}.weight"] + dora.change(p, before[f"{n}.weight"])
                               for n, p in parts.items()})  # fmt: skip
    was, found = diffusers_weights({key: before[key] for key in keys}), merged_by_diffusers(before, path)
    assert found.keys() == after.keys()
    return max(((found[n] - after[n]).norm() / (after[n] - was[n]).norm()).item() for n in after)


@pytest.mark.parametrize("format", ALL)
@pytest.mark.parametrize("which", PARTS)
def test_diffusers_loads_every_layer_at_its_strength(model, weights, tmp_path, which, format):
    parts = PARTS[which](weights)
    assert diffusers_error(model, parts, saved(parts, lora.weights(model), tmp_path, format)) < 1e-5


@pytest.mark.parametrize("format", ["diffusers", "peft"])
@pytest.mark.parametrize("rank", [alike, varied])
def test_diffusers_loads_dora_from_its_own_format_and_from_pefts(model, weights, tmp_path, rank, format):
    parts = low_rank(weights, rank, magnitudes=True)
    path = saved(parts, lora.weights(model), tmp_path, format)
    assert diffusers_error(model, parts, path) < 1e-5
    found = lora.read(model, read.load(path)).parts
    for name, part in parts.items():
        w = weights[name]
        torch.testing.assert_close(dora.change(found[name], w), dora.change(part, w), rtol=1e-4, atol=1e-5)


def loha(into, out):
    return Hadamard(torch.randn(out, 2), torch.randn(2, into), torch.randn(out, 2), torch.randn(2, into), 0.7)


def lokr(into, out):
    return Kronecker((torch.randn(4, 8),), (torch.randn(out // 4, 3), torch.randn(3, into // 8)), 1.5)


def lokr_in_two(into, out):
    return Kronecker((torch.randn(4, 3), torch.randn(3, 8)), (torch.randn(out // 4, into // 8),), 1.5)


def lokr_whole(into, out):
    return Kronecker((torch.randn(4, 8),), (torch.randn(out // 4, into // 8),), 1.5)


@pytest.mark.parametrize(("make", "rank"), [(loha, 2), (lokr, 3), (lokr_in_two, 3), (lokr_whole, 1)])
@pytest.mark.parametrize("format", ["comfyui", "kohya"])
def test_loha_and_lokr_have_an_alpha_for_readers_that_need_one(model, tmp_path, make, rank, format):
    """OneTrainer takes its own setting for a missing alpha; alpha over rank times the matrices is dW everywhere."""
    name = "single_blocks.0.linear2"
    part = make(512, 128)
    tensors = read.load(saved({name: part}, lora.weights(model), tmp_path, format))
    alpha = next(tensor for key, tensor in tensors.items() if key.endswith(".alpha"))
    own = {key.rpartition(".")[2]: tensor for key, tensor in tensors.items()}
    if make is loha:
        change = (own["hada_w1_a"] @ own["hada_w1_b"]) * (own["hada_w2_a"] @ own["hada_w2_b"])
    else:
        left, right = (own.get(f"lokr_{w}") if f"lokr_{w}" in own else own[f"lokr_{w}_a"] @ own[f"lokr_{w}_b"]
                       for w in ("w1", "w2"))  # fmt: skip
        change = torch.kron(left, right)
    torch.testing.assert_close(change * (alpha.item() / rank), part.delta())
