"""The published files in true size, without their bytes: recognised, planned, taken or refused from the headers alone.

A hollow file has the header and the length of the real one, and takes no room on the disk.
"""

import gc
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from published import FLAVOURS as SIZES
from published import FP8, LAYOUTS, headers_of, in_blocks, in_diffusers, nbytes, without_attention
from published import write_hollow as write_untouched
from published_encoders import (
    MISTRAL,
    MISTRAL_CUT,
    QWEN_4B,
    QWEN_8B,
    autoencoder,
    autoencoder_in_diffusers,
    but_the_first_layer,
    every_matrix,
    parts_of,
    tekken,
)  # fmt: skip
from published_encoders import headers_of as text_headers
from test_published import _only_what_this_comfyui_has as _only_what_this_comfyui_has

from flux2_train.errors import UserError
from flux2_train.flavours import FLAVOURS
from flux2_train.formats import AS_IN_FILE
from flux2_train.host import identify
from flux2_train.host.encoding import tokenizers
from flux2_train.host.loading import load, shards
from flux2_train.planning import weights
from flux2_train.planning.work import Machine
from flux2_train.runs import precision as fit
from flux2_train.settings.model import ModelSettings
from flux2_train.terminal.main import main

SECONDS, BYTES = 5, 400 << 20  # what may pass, and what may be taken of memory, until a file is taken or refused
# Bytes of published files: where their tensors and types are right, only the header is left, and Mistral's tokenizer.
PUBLISHED = {
    ("dev", "fp8mixed"): 35_455_599_592,
    ("klein-9b", "fp8, some layers bf16"): 9_818_935_984,  # of the kv variant
}
TEXTS = {
    "qwen 4b": (QWEN_4B, {}),
    "qwen 4b fp8mixed": (QWEN_4B, {"which": but_the_first_layer}),
    "qwen 8b": (QWEN_8B, {}),
    "qwen 8b fp8mixed": (QWEN_8B, {"which": but_the_first_layer}),
    "qwen 8b fp8 by tensor": (QWEN_8B, {"which": every_matrix, "by_tensor": True}),
    "mistral": (MISTRAL, {"tekken": tekken()}),
    "mistral cut": (MISTRAL_CUT, {"tekken": tekken()}),
    "mistral cut fp8": (MISTRAL_CUT, {"which": every_matrix, "tekken": tekken()}),
}


def resident() -> int:
    """Bytes of memory that this process has, mapped files among them."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.split("VmRSS:")[1].split()[0])


class Bounded:
    """Asserts on the way out that little time has passed and little memory was taken.

    Time of this process: how long others keep it waiting says nothing.
    """

    def __enter__(self):
        gc.collect()  # what earlier tests have left to be collected is not this one's
        self.began, self.before = time.process_time(), resident() if Path("/proc/self/status").exists() else 0

    def __exit__(self, kind, *_):
        if kind is None:
            assert time.process_time() - self.began < SECONDS
            assert not self.before or resident() - self.before < BYTES


def write_hollow(path, *contents) -> Path:
    """Writes the file and touches every tensor once.

    The file system fills the first page of a hole in up to 7 ms, which published files do not cost.
    """
    write_untouched(path, *contents)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        for name, entry in json.loads(file.read(length)).items():
            if name != "__metadata__":
                file.seek(8 + length + entry["data_offsets"][0])
                file.read(1)
    return path


@pytest.fixture
def hollow(tmp_path):
    """Writes a transformer's file of true size and gives its path."""

    def make(flavour, layout):
        path = tmp_path / f"{flavour}.safetensors"
        if layout != "diffusers":
            return write_hollow(path, *headers_of(LAYOUTS[layout], SIZES[flavour]))
        split = parts_of(in_diffusers(SIZES[flavour]), 3)
        for name, entries in split.items():
            write_hollow(tmp_path / name, entries, {"format": "pt"})
        return tmp_path / next(iter(split))

    return make


def size_of(layout, flavour):
    return sum(map(nbytes, headers_of(layout, SIZES[flavour])[0].values()))


def test_the_sizes_are_those_of_the_published_files():
    """Bytes of all tensors are the published file's less a header of some dozen kB."""
    assert 0 < PUBLISHED["dev", "fp8mixed"] - size_of(LAYOUTS["fp8mixed"], "dev") < 100_000
    fp8 = size_of(replace(LAYOUTS["fp8"], which=in_blocks), "klein-9b")
    kept = 23 * 4096**2  # numbers that the kv variant keeps in bf16
    assert 0 < PUBLISHED["klein-9b", "fp8, some layers bf16"] - fp8 - kept < 100_000
    assert 0 < 16_381_517_176 - sum(map(nbytes, text_headers(QWEN_8B)[0].values())) < 100_000
    mistral = sum(map(nbytes, text_headers(MISTRAL_CUT, every_matrix)[0].values()))
    assert 19_000_000 < 18_034_640_095 - mistral < 20_000_000  # tekken alone has 19 MB
    assert 0 < 336_213_556 - sum(map(nbytes, autoencoder().values())) < 50_000
    assert len(headers_of(LAYOUTS["bf16"], SIZES["klein-9b"])[0]) == 201


TRANSFORMERS = [(flavour, layout) for flavour in SIZES for layout in [*LAYOUTS, "diffusers"]]
OFTEN = [
    ("klein-4b", "bf16"), ("klein-4b", "fp8"), ("klein-9b", "fp8, some layers bf16"), ("dev", "bf16"),
    ("dev", "fp8mixed"), ("dev", "diffusers"), ("klein-9b", "nvfp4"), ("klein-9b", "checkpoint fp8"),
]  # fmt: skip


@pytest.mark.drawn(cases=4)
@pytest.mark.long(cases=1)
@pytest.mark.parametrize(
    "flavour, layout", [case if case in OFTEN else pytest.param(*case, marks=pytest.mark.slow) for case in TRANSFORMERS]
)
def test_a_transformer_is_recognised_planned_and_taken(flavour, layout, hollow, capsys):
    path, row = hollow(flavour, layout), FLAVOURS[flavour]
    assert sum(part.stat().st_blocks for part in path.parent.glob("*.safetensors")) * 512 < 2 << 20
    with Bounded():
        found = weights.of_files(shards.parts_of(path))
    assert (found.hidden, found.double, found.single, found.context) == row.sizes
    assert found.linears == weights.of_flavour(row, "bf16").linears
    quantised = LAYOUTS[layout].format if layout in LAYOUTS else ""
    assert found.quantised == bool(quantised)
    assert found.mapped == (layout != "diffusers")  # so the next line plans fp32's 129 GB on 64 GB of host memory
    with Bounded():
        assert main(["plan", "--transformer", str(path), "--vram", "24"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{path.name}: {flavour}, {found.total / 1e9:.2f} GB of weights, ") and "peak" in out
    with Bounded():
        surroundings = fit.Surroundings(Machine(24e9, 64e9))
        chosen, text = fit.chosen_precision(ModelSettings(flavour, "auto"), (path, path, path), surroundings)
    assert text.startswith(f"{flavour}, {chosen.precision} (auto: ")
    assert (chosen.precision == AS_IN_FILE) == ("quantised already" in text) or not quantised
    with Bounded(), torch.inference_mode():
        model = load.load_model(path, ModelSettings(flavour, AS_IN_FILE, transformer=str(path)))
    assert identify.flavour_name(model) == flavour
    named = list(model.model.diffusion_model.named_parameters())
    loaded = sum(w.nbytes for name, w in named if name.endswith(".weight"))
    assert loaded >= 0.9 * found.total or quantised
    other = "klein-9b" if flavour != "klein-9b" else "klein-4b"
    with Bounded(), pytest.raises(UserError, match=f"is {flavour}, not {other}: set flavour"), torch.inference_mode():
        load.load_model(path, ModelSettings(other))


@pytest.mark.long(cases=1)
@pytest.mark.parametrize("precision", ["bf16", "fp8 (scaled)", "nvfp4"])
def test_another_precision_is_taken_or_refused_from_the_header(precision, hollow):
    if precision not in load.precisions():
        pytest.skip(f"this ComfyUI has no {precision}")
    path = hollow("dev", "bf16")
    with Bounded(), torch.inference_mode():
        model = load.load_transformer(path, precision)
    assert identify.flavour_name(model) == "dev"
    path = hollow("dev", "fp8mixed")
    with Bounded(), pytest.raises(UserError, match="dev.safetensors is already quantised"), torch.inference_mode():
        load.load_transformer(path, precision)


def require_tokenizer(row) -> None:
    """Skip where this ComfyUI builds the flavour's tokenizer by a transformers that is not installed."""
    if problem := tokenizers.problem(row):
        pytest.skip(problem)


@pytest.mark.long
@pytest.mark.parametrize("name", [
    n if n in ("qwen 4b", "qwen 8b fp8mixed", "mistral cut fp8") else pytest.param(n, marks=pytest.mark.slow)
    for n in TEXTS
])  # fmt: skip
@pytest.mark.parametrize("parts", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_a_text_encoder_is_taken(name, parts, tmp_path):
    size, how = TEXTS[name]
    entries, metadata, texts = text_headers(size, **how)
    split = parts_of(entries, parts) if parts > 1 else {"text.safetensors": entries}
    for file, own in split.items():
        write_hollow(tmp_path / file, own, metadata, {k: v for k, v in texts.items() if k in own})
    row = FLAVOURS[{"qwen 4b": "klein-4b", "qwen 8b": "klein-9b"}.get(name[:7], "dev")]
    require_tokenizer(row)
    with Bounded(), torch.inference_mode():
        clip = load.load_text_encoder(tmp_path / next(iter(split)), row)
    inner = clip.cond_stage_model
    names = {2560: "qwen3_4b", 4096: "qwen3_8b", 5120: "mistral3_24b"}
    assert inner.clip == names[size.hidden] and getattr(inner, inner.clip).num_layers == size.layers
    assert clip.tokenize("a red cat")


def test_a_bf16_text_encoder_with_its_tokenizer_can_be_quantised(tmp_path):
    """The tokenizer's bytes are no quantised weights."""
    require_tokenizer(FLAVOURS["dev"])
    path = write_hollow(tmp_path / "text.safetensors", *text_headers(MISTRAL_CUT, tekken=tekken()))
    with Bounded(), torch.inference_mode():
        clip = load.load_text_encoder(path, FLAVOURS["dev"], "fp8 (scaled)")
    kinds = {w.dtype for n, w in clip.cond_stage_model.named_parameters() if n.endswith("_proj.weight")}
    assert len(kinds) == 1


def test_a_text_encoder_that_lacks_weights_is_refused(tmp_path):
    entries, metadata, texts = text_headers(QWEN_4B)
    del entries["model.layers.7.self_attn.q_norm.weight"]
    path = write_hollow(tmp_path / "text.safetensors", entries, metadata, texts)
    with pytest.raises(UserError, match=r"lacks 1 weight, model.layers.7.self_attn.q_norm.weight first"):
        load.load_text_encoder(path, FLAVOURS["klein-4b"])


@pytest.mark.parametrize("layout", ["bfl", "bfl, quant_conv inside", "diffusers"])
def test_an_autoencoder_is_taken(layout, tmp_path):
    if layout == "diffusers":
        pytest.importorskip("diffusers", minversion="0.36", reason="diffusers, a development requirement, is missing")
        entries = autoencoder_in_diffusers()
    else:
        entries = autoencoder(quant_inside=layout != "bfl")
    path = write_hollow(tmp_path / "vae.safetensors", entries, {})
    with torch.inference_mode():
        began = time.process_time()
        vae = load.load_vae(path, FLAVOURS["dev"])
    assert time.process_time() - began < SECONDS
    assert vae.latent_channels == 128 and vae.downscale_ratio == 16
    assert sum(p.numel() for p in vae.first_stage_model.parameters()) == sum(
        nbytes(entry) // 4 for name, entry in entries.items() if not name.startswith("bn.")
    )


def test_a_plan_for_a_file_says_what_is_wrong(hollow, tmp_path, capsys):
    path = hollow("klein-4b", "fp8")
    for arguments, message in [
        (["--transformer", str(path), "--flavour", "dev", "--vram", "8"], "is klein-4b, not dev"),
        (["--transformer", str(path), "--precision", "nvfp4"], "is quantised already and is never quantised twice"),
        (["--transformer", str(tmp_path / "none.safetensors")], "There is no file"),
        (["--transformer", str(write_hollow(tmp_path / "a.safetensors", {"a": ("F32", (2, 2))}, {}))], "is not a FLUX"),
        (["--vram", "8"], "needs --vram, and --flavour or --transformer"),
    ]:
        assert main(["plan", *arguments]) == 1
        assert message in capsys.readouterr().err
    assert main(["plan", "--transformer", str(path)]) == 0
    assert "| klein-4b, 1024 px | " in capsys.readouterr().out
    for precision in ("bf16", "nvfp4"):
        assert main(["plan", "--transformer", str(hollow("klein-4b", "bf16")), "--precision", precision]) == 0
        assert precision in capsys.readouterr().out


def test_fp8_and_mixed_files_differ_where_they_should():
    assert without_attention("double_blocks.0.img_mlp.0") and not without_attention("double_blocks.0.img_attn.qkv")
    assert LAYOUTS["fp8"].format == LAYOUTS["fp8mixed"].format == FP8
    assert size_of(LAYOUTS["fp8"], "dev") < size_of(LAYOUTS["fp8mixed"], "dev") < size_of(LAYOUTS["bf16"], "dev")
