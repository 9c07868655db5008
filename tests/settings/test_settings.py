"""Settings: what is wrong is refused by the name of its widget, nodes and jobs have one default, old names are read.

Everything here is made from the fields, so that a new setting is tested by being there.
"""

import importlib
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from flux2_train.errors import UserError
from flux2_train.settings import base, earlier, job
from flux2_train.settings.adapter import AdapterSettings
from flux2_train.settings.caches import EmbedSettings, LatentSettings
from flux2_train.settings.crops import CropSettings
from flux2_train.settings.dataset_folder import CaptionSettings, DatasetSettings, MaskSettings, ReferenceSettings
from flux2_train.settings.memory import MemorySettings
from flux2_train.settings.model import ModelSettings
from flux2_train.settings.objective import GuardSettings, GuidanceSettings, LossSettings, PreservationSettings
from flux2_train.settings.optimizer import EmaSettings, OptimizerSettings
from flux2_train.settings.previews import PreviewSettings, Prompt, ValidationLossSettings
from flux2_train.settings.rollout import RolloutSettings
from flux2_train.settings.routing import RoutingSettings
from flux2_train.settings.saving import CheckpointSettings, SaveSettings
from flux2_train.settings.slider import SliderSettings
from flux2_train.settings.timesteps import TimestepSettings
from flux2_train.settings.training import TrainingSettings

# Where each kind lies in a job, and the nodes whose widgets are its fields.
PLACES = {
    "model": (ModelSettings, "Load"), "dataset.0": (DatasetSettings, "DatasetFolder"),
    "dataset.0.caption_options": (CaptionSettings, "CaptionOptions"),
    "dataset.0.crop_options": (CropSettings, "CropOptions"), "dataset.0.mask_options": (MaskSettings, "MaskOptions"),
    "dataset.0.reference_options": (ReferenceSettings, "ReferenceOptions"), "embeds": (EmbedSettings, "CacheEmbeds"),
    "latents": (LatentSettings, "CacheLatents"), "training": (TrainingSettings, "LoraTrainer"),
    "training.adapter": (AdapterSettings, "AdapterOptions"), "training.timesteps": (TimestepSettings, "Timesteps"),
    "training.loss": (LossSettings, "TrainingObjective"), "training.guidance": (GuidanceSettings, "TrainingObjective"),
    "training.guard": (GuardSettings, "TrainingObjective"), "training.optimizer": (OptimizerSettings, "Optimizer"),
    "training.ema": (EmaSettings, "Optimizer"), "training.save": (SaveSettings, "SaveOptions"),
    "training.preservation_options": (PreservationSettings, "Preservation"),
    "training.validation_loss": (ValidationLossSettings, "ValidationLoss"),
    "training.checkpoints": (CheckpointSettings, "Checkpoints"), "training.memory": (MemorySettings, "Memory"),
    "training.rollout": (RolloutSettings, "ScheduledSampling"), "training.routing": (RoutingSettings, "TokenRouting"),
    "training.slider": (SliderSettings, "Slider"), "previews": (PreviewSettings, "Validation"),
}  # fmt: skip
WRONG_TYPE = {bool: "yes", int: 1.5, float: "much", str: 7}


def wrongs():
    """(place, name, value, words): a misspelt choice, both sides of the limits, no number, another type."""
    for place, (kind, _) in PLACES.items():
        for name in base.names(kind):
            annotation, (least, most) = base.info(kind, name).annotation, base.limits(kind, name)
            if base.choices(kind, name):
                yield place, name, base.choices(kind, name)[0] + "x", f"choose one of {base.choices(kind, name)[0]}"
                yield place, name, 7, "choose one of"
            elif annotation in WRONG_TYPE:
                yield place, name, WRONG_TYPE[annotation], "it must be "
            else:
                yield place, name, 7, "it must be "
            if annotation in (int, float):
                yield place, name, True, "it must be a"
                yield place, name, annotation(least - 1), f"it must be at least {least:g}"
                yield place, name, annotation(most * 2 + 1), f"at most {most:g}"
            if annotation is float:
                yield place, name, float("nan"), "it must be a finite number"
                yield place, name, float("inf"), "it must be a finite number"


def nested(place, name, value):
    """A job file with that one setting in it."""
    values = {"dataset": [{}], "previews": {"prompts": [{"text": "a cat"}]}}
    node = values
    for key in place.split("."):
        node = node[0] if key == "0" else node.setdefault(key, {})
    node[name] = value
    return values


@pytest.mark.parametrize("place, name, value, words", list(wrongs()), ids=lambda v: str(v)[:40])
def test_what_is_wrong_is_refused_by_its_widgets_name(place, name, value, words, tmp_path):
    path = tmp_path / "job.json"
    path.write_text(json.dumps(nested(place, name, value)))
    with pytest.raises(UserError) as error:
        job.load(path)
    assert f"{place}.{name} is " in str(error.value) and words in str(error.value)


@pytest.mark.parametrize("place", PLACES)
def test_a_misspelt_setting_is_refused_with_the_one_that_was_meant(place, tmp_path):
    name = base.names(PLACES[place][0])[-1]
    path = tmp_path / "job.json"
    path.write_text(json.dumps(nested(place, f"{name}e", 1)))
    with pytest.raises(UserError, match=f"{place}.{name}e is no setting; did you mean .{name}"):
        job.load(path)


def test_every_section_of_a_job_is_in_this_table():
    def sections(kind, place=""):
        for name, field in kind.__pydantic_fields__.items():
            inner = field.annotation
            if isinstance(inner, type) and issubclass(inner, base.Settings):
                yield f"{place}{name}"
                yield from sections(inner, f"{place}{name}.")

    found = {*sections(job.Job), *sections(DatasetSettings, "dataset.0."), "dataset.0", "previews"}
    assert found == {*PLACES, "output"}


@pytest.mark.parametrize("place", PLACES)
def test_a_node_and_a_job_file_have_the_same_defaults(pack, place):
    kind, node = PLACES[place]
    nodes = {each.GET_SCHEMA().node_id.removeprefix("Flux2"): each for each in pack.NODES}
    widgets = {entry.id: entry.default for entry in nodes[node].GET_SCHEMA().inputs if hasattr(entry, "default")}
    fields = sys.modules[f"{pack.__name__}.nodes.fields"]
    values = nested(place, "prompts", [{"text": "a cat"}]) if place == "previews" else nested(place, "x", 1)
    parent = values
    for key in place.split("."):
        parent = parent[int(key) if key.isdigit() else key]
    parent.pop("x", None)  # the section is there, and empty
    section = job.read(values)
    for key in place.split("."):
        section = section[int(key)] if key.isdigit() else getattr(section, key)
    same = {name: fields.as_widget(getattr(section, name)) for name in base.names(kind) if name != "prompts"}
    same |= {"start_from": "none"} if "start_from" in same else {}  # a list of files has no empty entry
    assert {name: widgets[name] for name in same} == same


# What tests/earlier_job.json holds: a job of the version before settings were named as their widgets are. Every setting
# in it that can be set beside the others is not at its default.
EARLIER = job.Job(
    (
        DatasetSettings(
            Path("/photos"), resolution=128, captions="one prompt", prompt="a [trigger]", trigger="zbot",
            class_word="robot", references=(Path("/before"), Path("/depth")), bad_files="refuse", subfolders=False,
            background="#00ff00", max_samples=7, repeats=3, probability=0.5, loss_weight=0.25, is_reg=True,
            base_target=True, timestep_offset=-1.5,
            caption_options=CaptionSettings(
                several="choose", shuffle=3, keep_tokens=1, separator=";", prepend_trigger=False, dropout=0.1,
                dropout_caption="[trigger]", seed=5,
            ),
            crop_options=CropSettings(
                resolutions=(512.0, 768.0), use="nearest", resolution_type="pixel", minimum=64.0, maximum=2048.0,
                too_small="skip", too_large="refuse", upscale=False, crop_aspect="random", aspects=(1.0, 1.5),
                crop_style="random", crops=2, flip_x=True, flip_y=True, seed=9,
            ),
            mask_options=MaskSettings(Path("/masks"), invert=True, minimum=0.2),
            reference_options=ReferenceSettings(resolution=96, sampling="random", dropout=0.3),
        ),
        DatasetSettings(Path("robot"), resolution=64, mask_options=MaskSettings(alpha=True)),
    ),
    model=ModelSettings(
        "nano", "bf16", "base", "a.safetensors", "b.safetensors", "c.safetensors", "fp16", "cpu", keep_quantised=True
    ),
    embeds=EmbedSettings(2, "a cat", "output folder", 3.0, "all"),
    latents=LatentSettings(4, "fp32", 512, "output folder", 2.0),
    training=TrainingSettings(
        name="zbot", rank=8, alpha=4.0, steps=200, epochs=3, learning_rate=2e-3, batch=2, accumulate=3, seed=11,
        targets="attention", checkpointing=False, offload="all", preservation=0.5, differential_guidance=3.0,
        validation_items=6, recipe="character", logs="csv, TensorBoard and Weights & Biases",
        adapter=AdapterSettings(
            kind="lokr", dropout=0.1, compute="fp32", lokr_factor=4, lokr_decompose_both=True,
            include="*.img_attn.*", exclude="*.proj", double_blocks="0-3", single_blocks="1", ranks="*.qkv = 2",
            start_from="/loras/start.safetensors",
        ),
        timesteps=TimestepSettings(
            distribution="beta", sigmoid_scale=2.0, sigmoid_mean=0.5, sigmoid_std=2.0, beta_alpha=3.0, beta_beta=4.0,
            mode_scale=0.5, values=(0.1, 0.2), shift="constant", shift_factor=2.5, shift_steps=7, bias="low noise",
            min=0.1, max=0.9, strata=8, weighting="table", weights=(1.0, 2.0),
        ),
        loss=LossSettings("huber", 0.2, "snr", 3.0, 0.1, 5.0),
        guidance=GuidanceSettings(2.0, 4.0, 2.0, "sigma", True, 1.0, "index_timestep_zero"),
        preservation_options=PreservationSettings("blank", 2, True, 0.5),
        optimizer=OptimizerSettings(
            "lion", "rex", warmup=0.1, weight_decay=0.02, max_grad_norm=2.0, end=0.2, cycles=2, power=3.0,
            betas=(0.9, 0.95), block_rates=(("double_blocks", 0.5),),
        ),
        ema=EmaSettings(0.9, 5, False, False), guard=GuardSettings(2, 4.0, True),
        validation_loss=ValidationLossSettings(0.2, 3, 10, True, 20), save=SaveSettings("kohya", "fp32", 8, False),
        checkpoints=CheckpointSettings(50, 5.0, 2, 4, True, 3),
        memory=MemorySettings(2, 0.0, "block", 2, False, "blocks", 1, "on", 1, 12.0, 6.0),
    ),
    previews=PreviewSettings(
        (Prompt("a zbot"), Prompt("b", "beta", 0.5, (Path("/ref.png"),))), "blurry", 512, 768, 50, False, 7, "walking",
        8, 3.0, "heun", 0.8, False, ModelSettings("klein-4b", variant="distilled"),
    ),
    output=job.Output("/loras", "/runs"),
    unknown=("the MODEL has changed options",),
)  # fmt: skip
EARLIER = replace(EARLIER, held_out=EARLIER.dataset[1:])
FILE = Path(__file__).with_name("earlier_job.json")


def test_a_job_of_an_earlier_version_is_read_for_good():
    assert job.load(FILE) == EARLIER
    assert job.read(base.plain(EARLIER)) == EARLIER  # and today's names are left as they are


def test_a_lora_of_an_earlier_version_is_recognised():
    header = json.dumps(json.loads(FILE.read_text())["training"])
    assert earlier.settings_of(header) == EARLIER.training
    name = Path(EARLIER.training.adapter.start_from).name  # the header of a file that people publish has no folder
    published = replace(EARLIER.training, adapter=replace(EARLIER.training.adapter, start_from=name))
    assert earlier.settings_of(EARLIER.training.to_json()) == published


@pytest.mark.parametrize("setting, changed", [
    ("guidance.guidance_max=9", lambda j: j.training.guidance.guidance_max == 9),
    ("training.guidance=3", lambda j: j.training.guidance == replace(EARLIER.training.guidance, guidance=3.0)),
    ("training.held_out.every=4", lambda j: j.training.validation_loss.every == 4),
    ("dataset.1.source.weight=2", lambda j: j.dataset[1].loss_weight == 2),
    ("validation.walk_seed=false", lambda j: j.previews.seeds == "fixed"),
    ("training.guidance.guidance=3", lambda j: j.training.guidance.guidance == 3),
])  # fmt: skip
def test_settings_of_a_command_line_have_both_names(setting, changed):
    place = (
        setting if "." in setting.partition("=")[0] and not setting.startswith("guidance") else f"training.{setting}"
    )
    assert not changed(job.load(FILE)) and changed(job.load(FILE, [place]))


@pytest.mark.parametrize("values, words", [
    ({"training": {"held_out": {}, "validation_loss": {}}}, "held_out is the earlier name of validation_loss"),
    ({"dataset": [{"source": {"trigger": "zbot"}}]}, "dataset.source.trigger is no setting"),
    ({"dataset": [{"source": {"caption_dropout": 0.5}}]}, "dataset.source.caption_dropout is no setting"),
    ({"dataset": [{"source": 3}]}, "dataset.source is 3; it must be a group of settings"),
    ({"training": {"guidance": 2.0, "guide": 5}}, "training.guidance is 5; it must be a group of settings"),
    ({"training": {"logs": ["mlflow"]}}, "training.logs is ['mlflow']; choose one of csv"),
    ({"dataset": [{"crop": {"style": "centre"}}]}, "crop_style is 'centre'; choose one of center, random"),
    ({"embeds": {"store": "ouput folder"}}, "embeds.store is 'ouput folder'; choose one of user folder, output folder"),
    ({"latents": {"vae_precision": "fp8"}}, "latents.vae_precision is 'fp8'; choose one of as loaded, fp32, bf16"),
])  # fmt: skip
def test_what_used_to_pass_is_refused(values, words):
    with pytest.raises(UserError) as error:
        job.read({"dataset": [{}], **values})
    assert words in str(error.value)


def test_settings_need_neither_torch_nor_comfyui():
    for name in ("timesteps", "training", "dataset_folder", "job"):
        module = importlib.import_module(f"flux2_train.settings.{name}")
        assert not {"torch", "comfy"} & set(vars(module))


def test_the_document_is_what_the_fields_say(typed):
    text = (Path(__file__).resolve().parents[2] / "docs" / "settings.md").read_text()
    assert typed("settings").stdout == text, "python -m flux2_train settings > docs/settings.md"


def test_an_editor_can_check_a_job_file_with_the_schema(typed):
    check = jsonschema.Draft202012Validator(json.loads(typed("settings", "--schema").stdout))
    assert check.is_valid(base.plain(EARLIER))
    wrong = [nested(*row[:3]) for row in wrongs() if row[2] not in (math.inf, -math.inf) and row[2] == row[2]]
    assert len(wrong) > 500 and not [values for values in wrong if check.is_valid(values)]
