"""The job file: everything in it, nothing else in it, and a sentence for whatever is wrong."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flux2_train.errors import UserError
from flux2_train.host import describe, identify
from flux2_train.host.loading import files, load
from flux2_train.settings import base, job
from flux2_train.settings.crops import CropSettings
from flux2_train.settings.dataset_folder import DatasetSettings
from flux2_train.settings.model import ModelSettings
from flux2_train.settings.training import TrainingSettings

FULL = job.Job(
    (
        DatasetSettings(
            Path("robot"), resolution=64, trigger="zbot", class_word="toy", crop_options=CropSettings(crop=False)
        ),
        DatasetSettings(Path("/else/where"), resolution=128, references=(Path("before"),)),
    ),
    model=ModelSettings("nano", "bf16", "base"),
    training=TrainingSettings(rank=3, learning_rate=0.5),
    output=job.Output("loras", "runs"),
)
MINIMAL = {"dataset": {"folder": "robot", "resolution": 64}}


def write(tmp_path, values, name="job.json"):
    path = tmp_path / name
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    return path


def test_a_job_is_the_same_after_its_file(tmp_path):
    assert job.load(write(tmp_path, FULL.to_json())) == FULL


def test_what_is_left_out_has_the_nodes_defaults(tmp_path):
    read = job.load(write(tmp_path, MINIMAL))
    assert read == job.Job((DatasetSettings(Path("robot"), resolution=64),))
    assert (read.model, read.training) == (ModelSettings(), TrainingSettings())


def test_toml_is_read_where_python_can(tmp_path):
    pytest.importorskip("tomllib")
    text = '[dataset]\nfolder = "robot"\nresolution = 64\n[training]\nrank = 3\nlearning_rate = 1\n'
    read = job.load(write(tmp_path, text, "job.toml"))
    assert read == job.Job(
        (DatasetSettings(Path("robot"), resolution=64),), training=TrainingSettings(rank=3, learning_rate=1.0)
    )


@pytest.mark.parametrize("setting, changed", [
    ("rank=5", lambda j: j.training.rank == 5),
    ("training.name=zbot 2", lambda j: j.training.name == "zbot 2"),
    ("training.checkpointing=false", lambda j: j.training.checkpointing is False),
    ("model.flavour=nano", lambda j: j.model.flavour == "nano"),
    ("dataset.trigger=vorn", lambda j: j.dataset[0].trigger == "vorn"),
    ("dataset.0.crop_options.crop=false", lambda j: j.dataset[0].crop_options.crop is False),
    ("dataset.0.crop.crop=false", lambda j: j.dataset[0].crop_options.crop is False),  # as earlier versions name it
    ("guidance=3", lambda j: j.training.guidance.guidance == 3),
    ("output.loras=/tmp/x", lambda j: j.output.loras == "/tmp/x"),
    ("dataset.references=[\"a\"]", lambda j: j.dataset[0].references == (Path("a"),)),
])  # fmt: skip
def test_settings_replace_those_of_the_file(tmp_path, setting, changed):
    path = write(tmp_path, MINIMAL)
    assert not changed(job.load(path)) and changed(job.load(path, [setting]))


@pytest.mark.parametrize("values, settings, words", [
    ({**MINIMAL, "trainin": {}}, [], "trainin is no setting; did you mean 'training'"),
    ({**MINIMAL, "training": {"rnk": 4}}, [], "training.rnk is no setting; did you mean 'rank'"),
    ({**MINIMAL, "training": {"rank": "high"}}, [], "training.rank is 'high'; it must be a whole number"),
    ({**MINIMAL, "training": {"rank": 1.5}}, [], "training.rank is 1.5; it must be a whole number"),
    ({**MINIMAL, "training": {"checkpointing": 1}}, [], "training.checkpointing is 1; it must be true or false"),
    ({**MINIMAL, "training": {"rank": 0}}, [], "rank is 0"),
    ({**MINIMAL, "training": 7}, [], "training is 7; it must be a group of settings"),
    ({**MINIMAL, "model": {"flavour": "klein-5b"}}, [], "flavour is 'klein-5b'; choose one of klein-9b"),
    ({**MINIMAL, "model": {"precision": "int3"}}, [], "precision is 'int3'"),
    ({**MINIMAL, "version": 2}, [], "version is 2; this pack reads version 1"),
    ({"dataset": {"resolution": 16}}, [], "dataset.0.resolution is 16; it must be at least 64 and at most 4096"),
    ({"dataset": []}, [], "dataset is empty"), ({}, [], "dataset is missing"),
    ("[1]", [], "a job is an object with"), ("{", [], "cannot be read"),
    (MINIMAL, ["rank"], "'rank' is not NAME=VALUE"), (MINIMAL, ["rank.x=1"], "rank is no setting"),
    (MINIMAL, ["dataset.7.trigger=x"], "there is no such place in the job"),
    (MINIMAL, ["version.x=1"], "version is {'x': 1}; it must be a whole number"),
    ({**MINIMAL, "version": 1}, ["version.x=1"], "there is no such place in the job"),
])  # fmt: skip
def test_what_is_wrong_is_named_with_its_place(tmp_path, values, settings, words):
    with pytest.raises(UserError) as error:
        job.load(write(tmp_path, values), settings)
    assert words in str(error.value) and str(tmp_path / "job.json") in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="There is no file .*nothing.json"):
        job.load(tmp_path / "nothing.json")


@given(rank=st.integers(1, 1024), rate=st.floats(1e-7, 1.0), name=st.from_regex(r"[a-z]{1,9}", fullmatch=True))
def test_every_number_survives_the_file(rank, rate, name):
    config = TrainingSettings(rank=rank, learning_rate=rate, name=name)
    assert base.read(TrainingSettings, json.loads(json.dumps(base.plain(config))), "training") == config


def test_unknown_parts_of_a_graph_stop_the_job_until_they_are_waived(tmp_path):
    path = write(tmp_path, {**MINIMAL, "unknown": ["the MODEL has injected code"]})
    with pytest.raises(UserError, match="the MODEL has injected code. Run it in ComfyUI, or add --set unknown="):
        job.load(path).require_known()
    job.load(path, ["unknown=[]"]).require_known()


def test_what_load_flux2_gave_is_described_by_its_own_inputs(nano):
    clip, vae = describe.text_encoder_file(nano.clip), describe.vae_file(nano.vae)
    chosen, unknown = describe.describe(nano.model, clip, vae)
    assert unknown == ()
    assert load.locate_parts(chosen) == tuple(identify.path_of(p) for p in (nano.model, nano.clip.patcher,
                                                                          nano.vae.patcher))  # fmt: skip
    assert (chosen.flavour, chosen.precision, chosen.variant) == ("nano", "as in file", "base")


def test_an_encoder_with_patches_is_not_described_by_its_file(nano):
    patched = nano.clip.clone()
    name = next(iter(patched.cond_stage_model.state_dict()))
    assert describe.text_encoder_file(patched) and patched.add_patches({name: (torch.zeros(1),)})
    assert describe.text_encoder_file(patched) == ""


@pytest.mark.parametrize("precision", ["bf16", "fp8 (e4m3)"])
def test_precision_is_known_again(nano, precision):
    path = identify.path_of(nano.model)
    with torch.inference_mode():
        model = load.load_model(path, ModelSettings("nano", precision))
    assert describe.describe(model, "a", "b")[0].precision == precision


def test_what_a_file_cannot_say_is_named(nano):
    patched = nano.model.clone()
    patched.add_patches({"diffusion_model.img_in.weight": (torch.zeros(1),)})
    wrapped = nano.model.clone()
    wrapped.set_model_unet_function_wrapper(lambda *_: None)
    loader = nano.model.clone()
    loader.cached_patcher_init = None
    assert describe.describe(patched, "a", "b")[1] == ("the MODEL has patched weights (a LoRA, or another node's)",)
    assert describe.describe(wrapped, "a", "b")[1] == ("the MODEL has changed options",)
    assert describe.describe(loader, "a", "b")[1] == ("the MODEL does not say which file it came from",)
    assert len(describe.describe(nano.model, "", "")[1]) == 2


def test_files_outside_of_comfyuis_folders_have_their_whole_path(nano, tmp_path):
    inside = identify.path_of(nano.model)
    assert files.name_of("diffusion_models", inside) == inside.name
    outside = tmp_path / inside.name
    outside.write_bytes(inside.read_bytes())
    assert files.name_of("diffusion_models", outside) == str(outside)
    assert load.locate_parts(ModelSettings("nano", transformer=str(outside)))[0] == outside
    with pytest.raises(UserError, match="is no safetensors file that is there"):
        load.locate_parts(ModelSettings("nano", transformer=str(tmp_path / "model.ckpt")))
