"""Load FLUX.2's precisions: ordinary ComfyUI models in the formats it reads itself, made one tensor at a time."""

import shutil
from pathlib import Path

import comfy.model_management
import comfy.quant_ops
import comfy.sd
import pytest
import torch
from safetensors.torch import load_file, save_file
from support import problem, velocity

from bench.encoding import encode_text
from flux2_train import nano
from flux2_train.errors import UserError
from flux2_train.flavours import FLAVOURS, LONGEST
from flux2_train.formats import AS_IN_FILE, CHOICES, DTYPES, FORMATS
from flux2_train.host import describe
from flux2_train.host.borrowed.borrow import linears
from flux2_train.host.loading import load, quantise

ROOT = Path(__file__).resolve().parents[3]
CPU = torch.device("cpu")


def largest(weight, count=None):
    """The largest absolute value of each ``count`` in a row, of each row, or (0) of all; in the shape of ``weight``."""
    if count == 0:
        return weight.abs().max()
    groups = weight.unflatten(1, (-1, count or weight.shape[1]))
    return groups.abs().amax(2, keepdim=True).expand_as(groups).flatten(1)


def fp8_step(value):
    """The distance of e4m3's neighbours around a value: three bits behind the leading one, which is at least 2^-6."""
    return 2 ** (value.abs().clamp(min=2**-6).log2().floor() - 3)


def mxfp8_scale(weight):
    return 2 ** (largest(weight, 32) / 448).log2().ceil()


def hadamard(size):
    """The symmetric, orthogonal matrix by which ConvRot's int4 rotates a row, group by group."""
    four, whole = torch.ones(4, 4) - 2 * torch.eye(4).flip(0), torch.ones(1, 1)
    while len(whole) < size:
        whole = torch.kron(whole, four)
    return whole / size**0.5


def rotated(weight):
    size = next(size for size in (256, 64, 16) if weight.shape[1] % size == 0)
    return (weight.unflatten(1, (-1, size)) @ hadamard(size)).flatten(1)


# By format, how far rounding to it may move each value of a matrix: half a step there.
HALF_A_STEP = {
    "fp8 (scaled)": lambda w: fp8_step(w * (448 / largest(w, 0))) * largest(w, 0) / 448 / 2,
    "mxfp8": lambda w: fp8_step(w / mxfp8_scale(w)) * mxfp8_scale(w) / 2,
    "int8": lambda w: largest(w) / 127 / 2,
    # 0, 0.5, 1, 1.5, 2, 3, 4, 6 times a scale that is e4m3 itself: of a value above 1 at most a fifth
    "nvfp4": lambda w: torch.maximum(largest(w, 16) / 6 * (1 + 2**-4) / 4, w.abs() / 5),
    "int4": lambda w: largest(rotated(w)) / 7 / 2,
}


@pytest.fixture(autouse=True)
def _only_what_this_comfyui_has(request):
    precision = request.node.callspec.params.get("precision") if hasattr(request.node, "callspec") else None
    if precision in FORMATS and precision not in quantise.available():
        pytest.skip(f"this ComfyUI has no {precision}")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "base-model.safetensors"
    save_file(nano.transformer(), path)
    return path


def weights_of(model):
    return {name: layer.weight for name, layer in linears(model).items()}


def predict(model):
    comfy.model_management.load_models_gpu([model])
    return velocity(model, *problem(1, context=nano.CONTEXT, dtype=torch.float32, text=LONGEST)[:3]).clone()


@pytest.mark.long(cases=2)
@pytest.mark.parametrize("precision", FORMATS)
def test_blocks_are_stored_quantised_and_the_rest_as_in_the_file(source, precision):
    original = load_file(source)
    with torch.inference_mode():
        model = load.load_transformer(source, precision)
        comfy.model_management.load_models_gpu([model])
        for name, weight in weights_of(model).items():
            inside = "_blocks." in name
            assert isinstance(weight, comfy.quant_ops.QuantizedTensor) == inside, name
            plain = (weight.dequantize() if inside else weight).float()
            exact = original[f"{name}.weight"].float()
            error = rotated(plain - exact) if precision == "int4" and inside else plain - exact
            allowed = HALF_A_STEP[precision](exact) if inside else 0
            assert (error.abs() <= allowed + 1e-6 * exact.abs().max() * inside).all(), name  # and fp32's own rounding
    stored = dict(quantise.stored([source], precision, CPU))
    assert sum(t.nbytes for t in stored.values()) < 0.62 * sum(t.nbytes for t in original.values())


@pytest.mark.long
@pytest.mark.parametrize("precision", FORMATS)
def test_a_kept_copy_is_the_same_model_for_stock_loaders(source, precision, comfy_folders):
    with torch.inference_mode():
        expected = predict(load.load_transformer(source, precision))
        kept = load.load_transformer(source, precision, keep=True)
        folder = comfy_folders / "diffusion_models" / "flux2_train_quantised"
        before = set(folder.glob("*"))
        assert torch.equal(predict(kept), expected)
        (path,) = set(folder.glob("*")) - before  # made on first use
        assert path.name.startswith("base-model-")
        assert torch.equal(predict(comfy.sd.load_diffusion_model(str(path))), expected)
        changed = path.stat().st_mtime_ns
        predict(load.load_transformer(source, precision, keep=True))
        assert path.stat().st_mtime_ns == changed  # the second start only reads


def test_load_flux2_offers_them_and_the_job_file_knows_them_again(source):
    there = [name for name in CHOICES if name in (AS_IN_FILE, *DTYPES, *quantise.available())]
    assert load.precisions() == there
    with torch.inference_mode():
        assert describe.precision_of(load.load_transformer(source, "nvfp4")) == "nvfp4"


def test_a_changed_source_gets_a_new_copy(source, tmp_path):
    path = tmp_path / "model.safetensors"
    shutil.copy(source, path)
    first = quantise.kept([path], "nvfp4", "cpu", tmp_path / "kept")
    save_file({k: v * 2 for k, v in load_file(source).items()}, path)
    second = quantise.kept([path], "nvfp4", "cpu", tmp_path / "kept")
    assert first != second and first.exists() and second.exists()


@pytest.mark.long
def test_core_can_load_a_quantised_model_anew(source):
    with torch.inference_mode():
        model = load.load_transformer(source, "nvfp4")
        again = model.cached_patcher_init[0](*model.cached_patcher_init[1], disable_dynamic=True)
        assert torch.equal(predict(again), predict(model))


@pytest.fixture(scope="module")
def text_encoder(tmp_path_factory):
    """nano's text encoder as a file, and what it makes of a caption as it is."""
    path = tmp_path_factory.mktemp("text encoder") / "text.safetensors"
    save_file(nano.text_encoder(), path)
    with torch.inference_mode():
        return path, encode_text(load.load_text_encoder(path, FLAVOURS["nano"]), "a red cat")


@pytest.mark.drawn(cases=3)
@pytest.mark.long
@pytest.mark.parametrize("precision", ["fp8 (e4m3)", *FORMATS])
def test_the_text_encoders_precision_acts(precision, text_encoder, comfy_folders):
    row, (path, exact) = FLAVOURS["nano"], text_encoder
    with torch.inference_mode():
        found = encode_text(load.load_text_encoder(path, row, precision), "a red cat")
        kept = encode_text(load.load_text_encoder(path, row, precision, keep=True), "a red cat")
    assert torch.equal(found, kept)
    assert 0 < (found - exact).norm() / exact.norm() < 0.5


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_nothing_is_quantised_twice(source, tmp_path, precision):
    path = tmp_path / "quantised.safetensors"
    save_file(dict(quantise.stored([source], "fp8 (scaled)", CPU)), path)
    with pytest.raises(
        UserError, match="quantised.safetensors is already quantised: set the precision to 'as in file'"
    ):
        load.load_transformer(path, precision)


def test_a_gpu_that_is_not_there_is_named():
    if comfy.model_management.get_torch_device().type != "cpu":
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match="ComfyUI runs on the CPU"):
        quantise.device_for("gpu")


def test_sizes_that_a_format_cannot_hold_are_named(tmp_path):
    save_file({"single_blocks.0.linear1.weight": torch.randn(16, 40)}, tmp_path / "odd.safetensors")
    with pytest.raises(UserError, match="nvfp4 needs rows of a multiple of 16 values; single_blocks.0.linear1"):
        list(quantise.stored([tmp_path / "odd.safetensors"], "nvfp4", CPU))


def test_a_format_of_a_newer_comfyui_is_named(source, monkeypatch):
    monkeypatch.delitem(comfy.quant_ops.QUANT_ALGOS, "nvfp4")
    assert "nvfp4" not in quantise.available()
    with pytest.raises(UserError, match="This ComfyUI cannot read nvfp4"):
        dict(quantise.stored([source], "nvfp4", CPU))


@pytest.mark.parametrize("precision", FORMATS)
@pytest.mark.parametrize("shape", [(640, 192), (600, 256)], ids=["tiles", "a rest"])
def test_slices_of_rows_are_not_noticed(precision, shape, monkeypatch):
    """The same bits as by the layout's own quantiser from the whole matrix."""
    weight, format = torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16(), FORMATS[precision]
    monkeypatch.setattr(quantise, "SLICE", 4 * shape[1] * 256)
    found, options = quantise.quantised("layer", weight, precision), dict(format.options)
    options |= {"convrot_groupsize": quantise._rotation(shape[1])} if format.rotated else {}
    options |= {"scale": "recalculate"} if format.largest else {}
    layout = comfy.quant_ops.QUANT_ALGOS[format.name]["comfy_tensor_layout"]
    whole = comfy.quant_ops.QuantizedTensor.from_float(weight.float(), layout, **options)
    for name, expected in whole.state_dict("layer.weight").items():
        assert found[name].shape == expected.shape and found[name].dtype == expected.dtype
        assert torch.equal(found[name].float(), expected.float()), name
