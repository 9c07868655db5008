"""Load FLUX.2 answers before it loads: what fits, in which precision, and what would where nothing does."""

import json
import re
import struct
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from flux2_train import nano as shipped
from flux2_train.errors import UserError
from flux2_train.flavours import FLAVOURS
from flux2_train.formats import AS_IN_FILE, PLANNED, PRECISIONS
from flux2_train.host.loading import files, load, quantise
from flux2_train.planning import weights
from flux2_train.planning.work import Machine
from flux2_train.runs import precision as fit
from flux2_train.settings.model import ModelSettings

GB = 10**9
CPU = torch.device("cpu")


def header_only(path, row, sizes=PRECISIONS["bf16"].stored_bytes):
    """A transformer's file of its true sizes, with a hole in place of the weights: only the header may be read."""
    linears = weights.of_flavour(row, "bf16").linears
    entries, end = {}, 0
    for name, (into, out) in linears.items():
        entries[f"{name}.weight"] = {"dtype": "BF16", "shape": [out, into], "data_offsets": [end, end + 2 * out * into]}
        end += 2 * out * into
    text = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """By flavour the three files of a Load FLUX.2."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("encoder", "vae"):
        save_file({"a": torch.zeros(250_000)}, folder / f"{name}.safetensors")
    others = folder / "encoder.safetensors", folder / "vae.safetensors"
    return {
        name: (header_only(folder / f"{name}.safetensors", FLAVOURS[name]), *others) for name in ("klein-9b", "dev")
    }


def chosen_precision(paths, flavour="klein-9b", precision=PLANNED, vram=24, ram=64):
    chosen = ModelSettings(flavour, precision)
    return fit.chosen_precision(chosen, paths[flavour], fit.Surroundings(Machine(vram * GB, ram * GB)))


def test_parts_and_layouts_are_told(paths):
    chosen, text = chosen_precision(paths, precision=AS_IN_FILE, vram=12)
    assert chosen == ModelSettings("klein-9b", AS_IN_FILE)
    lines = text.splitlines()
    assert lines[0] == "klein-9b, as in file"
    assert lines[1:4] == [
        " 18.16 GB  klein-9b.safetensors",
        "  0.00 GB  encoder.safetensors",
        "  0.00 GB  vae.safetensors",
    ]
    assert lines[4] == "free: 12.0 GB on the device, 64.0 GB in host memory"
    assert lines[5].startswith("512 px, rank 16: ") and "blocks streamed" in lines[5] and "s per step" in lines[5]
    assert lines[6].startswith("1024 px, rank 16: ") and "blocks streamed" in lines[6] and len(lines) == 7


def test_a_resolution_that_does_not_fit_is_told_apart(paths):
    _, text = chosen_precision(paths, "dev", "fp8 (scaled)", vram=6)
    assert "1024 px, rank 16: does not fit, " in text and "512 px, rank 16: " in text


@pytest.mark.parametrize("vram, ram, expected", [
    (80, 64, AS_IN_FILE),  # everything resident: of equally fast ones the file's own
    (16, 64, "fp8 (scaled)"),  # as the table in the README has it for 1024 px
    (7.5, 6, "nvfp4"),  # 8 bits leave no room in host memory
])  # fmt: skip
def test_auto_takes_the_fastest_that_fits_and_says_why(paths, vram, ram, expected):
    if expected not in (AS_IN_FILE, *quantise.available()):
        pytest.skip(f"this ComfyUI has no {expected}")
    chosen, text = chosen_precision(paths, vram=vram, ram=ram)
    assert chosen.precision == expected
    assert text.startswith(f"klein-9b, {expected} (auto: the fastest that fits ")


@pytest.mark.long
def test_auto_takes_only_what_this_comfyui_has(paths, monkeypatch):
    monkeypatch.setattr(quantise, "available", lambda: ["fp8 (scaled)"])
    with pytest.raises(UserError, match=r"cannot be trained here by any setting"):
        chosen_precision(paths, "dev", vram=24, ram=20)
    assert chosen_precision(paths, vram=16)[0].precision == "fp8 (scaled)"


def test_what_is_quantised_already_is_left_as_it_is(tmp_path, paths):
    source, path = tmp_path / "source.safetensors", tmp_path / "fp8.safetensors"
    save_file(shipped.transformer(), source)
    precision = quantise.available()[0]
    chosen, text = kept(quantise, source, precision, path, paths)
    assert chosen.precision == AS_IN_FILE
    assert text.startswith(f"nano, as in file (auto: {path.name} is quantised already and is never quantised twice)")


def kept(quantise, source, precision, path, paths):
    path.write_bytes(quantise.kept([source], precision, "cpu", path.parent / "kept").read_bytes())
    chosen = ModelSettings("nano", PLANNED)
    return fit.chosen_precision(chosen, (path, *paths["dev"][1:]), fit.Surroundings(Machine(GB, GB)))


@pytest.mark.long
def test_what_no_setting_makes_fit_is_refused_with_what_would(paths):
    with pytest.raises(UserError) as error:
        chosen_precision(paths, "dev", "bf16", vram=24, ram=40)
    text = str(error.value)
    assert text.startswith("dev with precision 'bf16' cannot be trained here by any setting: it needs ")
    assert "24.0 GB are free" in text and "64.4 GB of weights in host memory, where 40.0 GB are free" in text
    assert "What would fit: precision 'fp8 (scaled)', " in text and "klein-4b with precision 'fp8 (scaled)'" in text
    assert re.search(r"precision 'as in file', at \d+ s per step from the disk, ", text)
    with pytest.raises(UserError, match="No flavour fits"):
        chosen_precision(paths, vram=0.5)


@pytest.mark.parametrize("offered, told", [(64.5, False), (40, True), (4, True)])
def test_a_file_that_is_stored_as_it_is_may_be_larger_than_host_memory(paths, offered, told):
    """It is mapped: what host memory has no room for is read from the disk again in each step."""
    _, text = chosen_precision(paths, "dev", AS_IN_FILE, vram=24, ram=offered)
    plans = [line for line in text.splitlines() if line[0] in "15" and " px" in line]
    assert len(plans) == 2 and all(" s per step" in line for line in plans)
    assert all(("GB of weights read from disk" in line) == told for line in plans)


def test_auto_reads_no_weights_from_disk_where_another_precision_fits(paths):
    chosen, text = chosen_precision(paths, "dev", vram=24, ram=40)
    assert chosen.precision != AS_IN_FILE and "disk" not in text


@pytest.mark.long
def test_a_card_that_is_too_small_is_named_without_host_memory_for_a_mapped_file(paths):
    with pytest.raises(UserError, match=r"1.0 GB are free\. ") as error:
        chosen_precision(paths, "dev", AS_IN_FILE, vram=1, ram=4)
    assert "host memory" not in str(error.value)


def test_on_a_cpu_nothing_is_refused(paths):
    chosen = ModelSettings("klein-9b", AS_IN_FILE)
    _, text = fit.chosen_precision(chosen, paths["klein-9b"], fit.Surroundings(Machine(4 * GB, 4 * GB), limited=False))
    assert "free: 4.0 GB in host memory" in text and "512 px, rank 16: does not fit" in text


def test_a_file_of_another_flavour_is_left_to_the_loader(paths):
    for wrong in (paths["klein-9b"], (paths["dev"][1], *paths["dev"][1:])):
        chosen, text = fit.chosen_precision(ModelSettings("dev", PLANNED), wrong, fit.Surroundings(Machine(GB, GB)))
        assert chosen.precision == AS_IN_FILE and text.splitlines()[0] == wrong[0].name


def test_a_job_may_say_auto_and_the_text_encoder_may_not():
    assert ModelSettings(precision="auto").precision == PLANNED
    with pytest.raises(UserError, match="text_encoder_precision is 'auto'"):
        ModelSettings(text_encoder_precision="auto")


def test_on_this_machine(comfy_folders):
    chosen = ModelSettings("nano", PLANNED)
    resolved, text = fit.chosen_precision(chosen, load.locate_parts(chosen))
    assert resolved == replace(chosen, precision=AS_IN_FILE) and "1024 px, rank 16: " in text
    assert files.find(FLAVOURS["nano"].transformer_files("auto")[0]).name in text
