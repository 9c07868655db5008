"""Compare LoRAs: every cell is FLUX.2 Sampler behind LoRA Apply, in its labelled place."""

import re
from dataclasses import replace

import numpy
import pytest
import torch
from comfy_api.latest import io
from safetensors.torch import save_file
from support import adapters_for, brief_flux2, state_dict, tiny_caches

from flux2_train.adapters import read
from flux2_train.adapters.header import references_of
from flux2_train.errors import UserError
from flux2_train.evaluate import sheets
from flux2_train.evaluate.compare import MOST, compared, labelled, matching, require_few
from flux2_train.host.lora import apply as lora
from flux2_train.host.sampling import sample as sampling
from flux2_train.host.sampling.sample import PaintSettings
from flux2_train.runs import checkpoints
from flux2_train.runs.checkpoint_lora import lora_of, write_lora
from flux2_train.runs.folder import RunFolder
from flux2_train.runs.prepare import new_trainer
from flux2_train.runs.session import train
from flux2_train.settings.adapter import AdapterSettings
from flux2_train.settings.objective import GuidanceSettings
from flux2_train.settings.optimizer import EmaSettings, OptimizerSettings
from flux2_train.settings.saving import CheckpointSettings, SaveSettings
from flux2_train.settings.training import TrainingSettings

PROMPT, STRENGTHS = "zbot", (0.5, 1.0)
FREE = OptimizerSettings("schedulefree")
SETTINGS = PaintSettings(steps=1, guidance=2.0, width=32, height=48, seed=3)


@pytest.fixture(scope="module")
def nano(brief_nano):
    return brief_nano


@pytest.fixture(scope="module")
def loras(nano, comfy_folders):
    """Two files in ComfyUI's folder, by name."""
    found = {}
    for name, rank in (("cmp_a.safetensors", 1), ("cmp_b.safetensors", 2)):
        path = comfy_folders / "loras" / name
        save_file(state_dict(adapters_for(nano.model, rank=rank), torch.float32), path)
        found[name] = read.load(path)
    return found


@pytest.fixture(scope="module")
def rows(nano, loras):
    return compared(nano.model, nano.clip, nano.vae, loras, STRENGTHS, PROMPT, "blue", SETTINGS)


@pytest.mark.long
def test_every_picture_is_the_samplers(nano, loras, rows):
    def sampled(model):
        return sampling.sample(model, nano.clip, nano.vae, PROMPT, negative="blue", **vars(SETTINGS))[0]

    assert torch.equal(rows[0][0], sampled(nano.model))
    for name, row in zip(loras, rows[1:], strict=True):
        for strength, picture in zip(STRENGTHS, row, strict=True):
            assert torch.equal(picture, sampled(lora.apply(nano.model, loras[name], strength)))
    flat = [picture for row in rows for picture in row]
    assert not any(torch.equal(a, b) for i, a in enumerate(flat) for b in flat[:i])


@pytest.mark.long
def test_the_grid_has_a_row_per_lora_and_a_column_per_strength(rows):
    grid = numpy.asarray(labelled(rows, ["a", "b"], STRENGTHS, 0))
    step = 32 + sheets.GAP
    tops = [sheets.HEAD + n * (48 + sheets.LINE + 2 * sheets.GAP) + sheets.LINE + sheets.GAP // 2 for n in range(2)]

    def cell(row, column):
        left = sheets.GAP + column * step
        return grid[tops[row] : tops[row] + 48, left : left + 32]

    for row in range(2):
        for column in range(2):
            assert numpy.array_equal(cell(row, column + 1), numpy.asarray(sheets.to_picture(rows[row + 1][column])))
    assert numpy.array_equal(cell(0, 0), numpy.asarray(sheets.to_picture(rows[0][0])))
    assert (cell(1, 0) == 255).all()  # the base stands once
    label = grid[sheets.HEAD : tops[0] - sheets.GAP // 2]  # the first LoRA's name stands above its own pictures
    assert (label[:, : sheets.GAP + step] == 255).all() and (label[:, sheets.GAP + step :] != 255).any()
    small = labelled(rows, ["a", "b"], STRENGTHS, 24)
    assert small.width < grid.shape[1] and small.height < grid.shape[0]


def test_names_patterns_and_endings_find_files():
    names = ["a.safetensors", "run.safetensors", "run_step10.safetensors", "sub/run.safetensors"]
    assert matching("a\nrun.safetensors\n\n", names) == ["a.safetensors", "run.safetensors"]
    assert matching("run*", names) == ["run.safetensors", "run_step10.safetensors"]
    assert matching("run*\nrun", names) == ["run.safetensors", "run_step10.safetensors"]
    for bad in ("b", "../a", "b*"):
        with pytest.raises(UserError, match="No LoRA file is called"):
            matching(bad, names)


@pytest.mark.parametrize("loras, strengths, words", [
    (0, (1.0,), "has no LoRA"), (1, (), "strengths is empty"), (33, (0.5, 1.0), f"are 66 pictures; at most {MOST}"),
])  # fmt: skip
def test_too_little_and_too_much_are_refused(loras, strengths, words):
    with pytest.raises(UserError, match=words):
        require_few(loras, strengths)


@pytest.mark.long
def test_the_node_gives_the_chosen_lora_and_sees_a_changed_file(pack, nano, loras, comfy_folders):
    (node,) = (n for n in pack.NODES if n.GET_SCHEMA().node_id == "Flux2CompareLoras")
    prepared = node.PREPARE_CLASS_CLONE({"hidden_inputs": {io.Hidden.unique_id: "1"}})
    common = {"prompt": PROMPT, **{k: v for k, v in vars(replace(SETTINGS, batch=1)).items() if k != "batch"}}
    wired = loras["cmp_b.safetensors"]
    with torch.inference_mode():
        grid, chosen, name = prepared.execute(
            nano.model, nano.clip, nano.vae, "cmp_a*", "1", index=1, lora=wired, picture_size=0, **common
        ).args  # fmt: skip
        with pytest.raises(ValueError, match="index is 2 but the LoRAs here are 2"):
            prepared.execute(nano.model, nano.clip, nano.vae, "cmp_a", "1", index=2, lora=wired, **common)
    assert name == "cmp_a.safetensors" and all(torch.equal(chosen[k], loras[name][k]) for k in chosen)
    expected = compared(nano.model, nano.clip, nano.vae, {"x": wired, "y": chosen}, [1.0], PROMPT, "", SETTINGS)
    shown = labelled(expected, ["the LoRA wired in", name], [1.0], 0)
    assert numpy.array_equal((grid[0] * 255).round().byte().numpy(), numpy.asarray(shown))
    before = node.fingerprint_inputs(files="cmp_a")
    save_file({k: 2 * v for k, v in chosen.items()}, comfy_folders / "loras" / name)
    assert node.fingerprint_inputs(files="cmp_a") != before


@pytest.mark.parametrize("run", ["nothing", "../outside", ".."])
def test_a_run_that_is_not_in_its_folder_is_named(pack, comfy_folders, run):
    """Also where checkpoints lie outside of it."""
    (node,) = (n for n in pack.NODES if n.GET_SCHEMA().node_id == "Flux2CompareLoras")
    (comfy_folders / "output" / "flux2_train").mkdir(exist_ok=True)  # or no path leads out of it
    for place in ("outside", "."):
        folder = comfy_folders / "output" / place / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "step_00000001.safetensors").write_bytes(b"not whole")
    with pytest.raises(ValueError, match=re.escape(f"There is no run '{run}' with checkpoints")):
        node.execute(None, None, None, "", "1", PROMPT, 0, run=run)


OF_A_RUN = ("modelspec.date", "modelspec.resolution", "flux2_train.certificate")


@pytest.mark.long
@pytest.mark.parametrize("change", [
    {}, {"ema": EmaSettings(0.5)}, {"ema": EmaSettings(0.5, ema_export=False)}, {"adapter": AdapterSettings("lokr")},
    {"adapter": AdapterSettings("loha")}, {"adapter": AdapterSettings(dora=True)},
    {"adapter": AdapterSettings(rslora=True)},
    {"guidance": GuidanceSettings(references="index_timestep_zero")}, {"optimizer": FREE},
    {"optimizer": FREE, "ema": EmaSettings(0.5)}, {"optimizer": FREE, "ema": EmaSettings(0.5, ema_export=False)},
    {"optimizer": FREE, "adapter": AdapterSettings(dora=True, lora_plus=4.0)},
], ids=["lora", "mean", "not the mean", "lokr", "loha", "dora", "rslora", "references", "schedule-free",
        "schedule-free, mean", "schedule-free, not the mean", "schedule-free, dora"])  # fmt: skip
def test_a_checkpoint_is_the_lora_that_would_have_been_saved(nano, change, tmp_path):
    config = TrainingSettings(
        name="kept", steps=2, rank=2, learning_rate=1e-2, validation_items=0,
        checkpoints=CheckpointSettings(every_steps=2), save=SaveSettings(precision="fp32", certificate=False), **change,
    )  # fmt: skip
    model = brief_flux2()
    with torch.inference_mode():
        results = train(new_trainer(model, *tiny_caches(2), config), tmp_path, tmp_path, lambda event: None)
        (path,) = checkpoints.paths(RunFolder(results.folder).checkpoints)
        found = lora_of(model, path)
        with pytest.raises(UserError, match="step_00000002.safetensors does not fit the MODEL, nano"):
            lora_of(nano.model, path)
    saved = read.load(results.lora_path)
    assert found.keys() == saved.keys() and all(torch.equal(found[k], saved[k]) for k in saved)
    assert references_of(found) == references_of(saved)
    with torch.inference_mode():
        write_lora(model, path, tmp_path / "converted.safetensors", config.save)
    assert same_file(tmp_path / "converted.safetensors", results.lora_path)


def same_file(one, other):
    """The same tensors, and the same header but for what differs between a file of a run and one of a checkpoint."""
    found, saved = read.load(one), read.load(other)
    same = found.keys() == saved.keys() and all(torch.equal(found[k], saved[k]) for k in saved)
    headers = [{k: v for k, v in read.header(path).items() if k not in OF_A_RUN} for path in (one, other)]
    return same and headers[0] == headers[1]


def test_checkpoints_that_cannot_be_compared_are_named(nano, tmp_path):
    (tmp_path / "step_00000001.safetensors").write_bytes(b"not whole")
    with pytest.raises(UserError, match="The checkpoint step_00000001.safetensors cannot be read"):
        lora_of(nano.model, tmp_path / "step_00000001.safetensors")
