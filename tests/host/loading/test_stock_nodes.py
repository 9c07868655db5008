"""Every node of ComfyUI that takes a MODEL does with Load FLUX.2's, not loaded yet, what it does with core's."""

import comfy.model_management
import comfy.sd
import folder_paths
import pytest
import torch
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_extras import nodes_lora_extract, nodes_model_merging
from comfy_extras.nodes_torch_compile import TorchCompileModel
from safetensors.torch import load_file, save_file
from stock_nodes import Lacking, World, same, taking_a_model
from support import flux2_shapes
from torch._dynamo.utils import compilation_time_metrics as compile_times

from flux2_train.host.loading import load, quantise
from flux2_train.host.loading.awaited import is_awaited

CONTEXT = 96
MERGES = ("ModelMergeAdd", "ModelMergeBlocks", "ModelMergeFlux1", "ModelMergeSimple", "ModelMergeSubtract")
REFUSED = {"fp8 (scaled)": MERGES}  # with the same error by core's MODEL of that precision
PRECISIONS = ["as in file", "fp32", "fp8 (scaled)"]
CHOSEN = [  # what reads weights, and one or two of every other kind; all of them run under --all
    "TrainLoraNode", "ModelMergeSimple", "ModelMergeSubtract", "ModelMergeAdd", "ModelMergeBlocks", "ModelMergeFlux1",
    "ModelSave", "CheckpointSave", "LoraSave", "LoraModelLoader", "ModelComputeDtype", "ModelSamplingFlux",
    "RescaleCFG", "TorchCompileModel", "KSampler", "BasicGuider", "BasicScheduler", "EasyCache", "FluxKVCache",
    "SelectModelDevice",
]  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path, generator = tmp_path_factory.mktemp("models") / "base-model.safetensors", torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(shape, generator=generator) * shape[-1] ** -0.5 if len(shape) > 1 else torch.ones(shape)
        for name, shape in flux2_shapes(128, 1, 1, CONTEXT)
    }
    save_file({name: weight.bfloat16() for name, weight in weights.items()}, path)
    return path


@pytest.fixture(scope="module")
def world(nano):
    return World(nano.clip, nano.vae, CONTEXT)


@pytest.fixture(scope="module")
def core_file(source, tmp_path_factory):
    """``core_file(precision)``: a file from which core's loader gives the weights that ours makes."""

    def of(precision):
        if precision not in quantise.FORMATS:
            return source
        return quantise.kept([source], precision, "cpu", tmp_path_factory.mktemp("kept"))

    return of


def of_core(core_file, precision):
    # of a file in bf16; left to itself core would widen it for the CPU
    dtypes = {"as in file": {"dtype": torch.bfloat16}, "fp32": {"dtype": torch.float32}}
    return comfy.sd.load_diffusion_model(str(core_file(precision)), model_options=dtypes.get(precision, {}))


def ours(source, precision):
    """A MODEL that nobody has read a weight of."""
    model = load.load_transformer(source, precision)
    assert all(is_awaited(w) == (precision != "as in file") for w in model.model.diffusion_model.parameters())
    return model


def compared(world, kind, source, precision, core_models):
    """(what a node gives for our MODELs, what it gives for core's)."""
    with torch.inference_mode():
        found = world.outcome(kind, ours(source, precision), ours(source, precision))
        expected = world.outcome(kind, *core_models)
        comfy.model_management.unload_all_models()
    return found, expected


@pytest.fixture(scope="module", params=PRECISIONS)
def precision(request):
    return request.param


@pytest.fixture(scope="module")
def core_models(core_file, precision):
    with torch.inference_mode():
        return of_core(core_file, precision), of_core(core_file, precision)


def all_compared(world, kinds, source, precision, core_models):
    """Names of the nodes that ran, and of those that want something that belongs to other models, with what it is."""
    lacking, failed, ran = {}, {}, []
    for name, kind in kinds.items():
        try:
            found, expected = compared(world, kind, source, precision, core_models)
        except Lacking as error:
            lacking[name] = str(error)
            continue
        if not same(found, expected):
            failed[name] = str(found)[:300], str(expected)[:300]
        elif not isinstance(expected, tuple):
            ran.append(name)
    assert not failed, failed
    return ran, lacking


@pytest.mark.long(cases=1)
def test_what_reads_weights_does_the_same_with_ours(world, source, precision, core_models):
    known = taking_a_model()
    ran, _ = all_compared(world, {name: known[name] for name in CHOSEN}, source, precision, core_models)
    assert sorted(ran) == sorted(set(CHOSEN) - set(REFUSED.get(precision, ())))


@pytest.mark.slow
def test_every_node_does_the_same_with_ours(world, source, precision, core_models):
    ran, lacking = all_compared(world, taking_a_model(), source, precision, core_models)
    print(len(ran), "ran:", *sorted(ran), "\nwithout what they need:", lacking)
    assert len(ran) > 60 and set(CHOSEN) - set(REFUSED.get(precision, ())) <= set(ran)


COMPILED = [*((precision, "aot_eager") for precision in PRECISIONS), ("as in file", "inductor")]


@pytest.mark.slow
@pytest.mark.parametrize("precision, backend", COMPILED, indirect=["precision"], scope="module")
def test_a_compiled_one_samples_like_cores(world, source, precision, core_models, backend):
    """Compiled in earnest, which the tests above leave out because it takes minutes.

    Inductor, the node's own choice, is tried on one precision. Of the others what could fail is shown by any backend:
    that torch can trace through the weights.
    """

    def sampled(model):
        torch.compiler.reset()
        compile_times.clear()
        if backend == "inductor":
            compiled = TorchCompileModel.execute(model, backend)[0]
        else:
            set_torch_compile_wrapper(compiled := model.clone(), backend)
        found = world.sampled(compiled)
        assert compile_times  # something was compiled
        return found

    with torch.inference_mode():
        found, expected = sampled(ours(source, precision)), sampled(core_models[0])
        plain = world.sampled(core_models[0])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert (found - plain).norm() < 1e-2 * plain.norm()


def saved(node, model, folder):
    """What a saving node wrote."""
    before = set(folder.rglob("*.safetensors"))
    node(model)
    (path,) = set(folder.rglob("*.safetensors")) - before
    return load_file(path)


@pytest.mark.parametrize("what", ["model", "lora"])
def test_saved_models_and_extracted_loras_are_those_of_cores_loader(
    source, precision, core_models, comfy_folders, what
):
    folder = comfy_folders / "output"
    if what == "lora" and precision in quantise.FORMATS:
        pytest.skip("core cannot subtract quantised models")

    def save(model):
        nodes_model_merging.ModelSave().save(model, f"diffusion_models/{what}")

    def extract(model):
        tripled = nodes_model_merging.ModelAdd().merge(model, model)[0]
        difference = nodes_model_merging.ModelSubtract().merge(tripled, model, 0.5)[0]
        nodes_lora_extract.LoraSave.execute(f"loras/{what}", 4, "standard", True, model_diff=difference)

    assert folder_paths.get_output_directory() == str(folder)
    with torch.inference_mode():
        node = save if what == "model" else extract
        found, expected = (saved(node, model, folder) for model in (ours(source, precision), core_models[0]))
    assert found and found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype and torch.equal(tensor.float(), expected[name].float()), name
