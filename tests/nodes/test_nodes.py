"""Each node alone, as the class ComfyUI would call."""

import json
import re
import shutil
from pathlib import Path

import peer_configs as peers
import pytest
import torch
from comfy_api.latest import io
from safetensors import safe_open
from support import with_few_words

from flux2_train.nano import TRANSFORMER
from flux2_train.settings import job

ROOT = Path(__file__).resolve().parents[2]
FILLERS = {"the", "a", "an", "of", "for", "and", "or", "in", "to", "is", "this", "its", "it"}
# Numbers whose 0 is nothing but zero.
MEANS_ZERO = {"seed", "keep_tokens", "warmup", "end", "ema_warmup"}
IDS = [
    "Flux2Load", "Flux2DatasetFolder", "Flux2CaptionOptions", "Flux2CropOptions", "Flux2MaskOptions",
    "Flux2ReferenceOptions", "Flux2CacheEmbeds", "Flux2CacheLatents", "Flux2AdapterOptions", "Flux2SaveOptions",
    "Flux2Checkpoints", "Flux2Memory", "Flux2TrainingObjective",
    "Flux2Timesteps", "Flux2TokenRouting", "Flux2ScheduledSampling", "Flux2Slider", "Flux2Optimizer",
    "Flux2Preservation", "Flux2Validation", "Flux2ValidationLoss",
    "Flux2LoraTrainer", "Flux2LoraApply", "Flux2Sampler", "Flux2CompareLoras", "Flux2SaveMergedModel",
    "Flux2ImportSettings", "Flux2TrainQueued", "Flux2CheckpointLora", "Flux2DatasetImages", "Flux2FolderImages",
    "Flux2CaptionImages", "Flux2PublishLora",
]  # fmt: skip


@pytest.fixture(scope="module")
def nodes(pack):
    """The node classes by id, prepared as ComfyUI's executor prepares them."""
    found = {}
    for node in pack.NODES:
        schema = node.GET_SCHEMA()
        found[schema.node_id] = node.PREPARE_CLASS_CLONE({"hidden_inputs": {io.Hidden.unique_id: "1"}})
    return found


@pytest.fixture(scope="module")
def loaded(nodes):
    """What Load FLUX.2 gives; the MODEL reads few text tokens, so that training and painting are quick."""
    with torch.inference_mode():
        model, clip, vae = nodes["Flux2Load"].execute(flavour="nano", precision="as in file").args
    return with_few_words(model), clip, vae


@pytest.fixture(scope="module")
def dataset(nodes):
    return (
        nodes["Flux2DatasetFolder"].execute(folder="robot", resolution=64, trigger=" zbot ", class_word="toy").args[0]
    )


@pytest.fixture(scope="module")
def few(nodes, comfy_folders):
    """Three of its pictures: enough to train on, and quickly encoded."""
    folder = comfy_folders / "input" / "three robots"
    folder.mkdir()
    for path in sorted((ROOT / "datasets" / "robot").iterdir())[:6]:
        shutil.copy(path, folder)
    return (
        nodes["Flux2DatasetFolder"]
        .execute(folder=folder.name, resolution=64, trigger=" zbot ", class_word="toy")
        .args[0]
    )


CATEGORIES = dict.fromkeys(
    ("Flux2Load", "Flux2DatasetFolder", "Flux2DatasetImages", "Flux2FolderImages", "Flux2CaptionImages",
     "Flux2CacheEmbeds", "Flux2CacheLatents", "Flux2LoraTrainer", "Flux2TrainQueued", "Flux2CheckpointLora"),
    "Train",
) | dict.fromkeys(
    ("Flux2LoraApply", "Flux2Sampler", "Flux2CompareLoras", "Flux2SaveMergedModel", "Flux2ImportSettings",
     "Flux2PublishLora"), "Use"
)  # fmt: skip


def test_ids_and_category_are_stable(pack):
    schemas = [node.GET_SCHEMA() for node in pack.NODES]
    assert [s.node_id for s in schemas] == IDS
    assert [s.category.removeprefix("FLUX.2/") for s in schemas] == [CATEGORIES.get(name, "Options") for name in IDS]


@pytest.mark.parametrize("number", range(len(IDS)), ids=IDS)
def test_a_tooltip_says_more_than_the_name_and_what_zero_does(pack, number):
    """A widget that is 0 unless somebody sets it has something that 0 stands for: off, all, automatic."""
    schema = pack.NODES[number].GET_SCHEMA()
    assert schema.description
    for entry in schema.inputs:
        name, tooltip = f"{entry.id} {entry.display_name or ''}", entry.tooltip or ""
        assert len(set(words(tooltip)) - set(words(name)) - FILLERS) >= 3, entry.id
        if (getattr(entry, "default", None), getattr(entry, "min", None)) == (0, 0) and entry.id not in MEANS_ZERO:
            assert re.search(r"(?<![\d.])0(?!\.?\d)", tooltip), entry.id


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


@pytest.mark.parametrize("number", range(len(IDS)), ids=IDS)
def test_every_node_has_a_help_page_that_names_its_inputs(pack, number):
    schema = pack.NODES[number].GET_SCHEMA()
    text = (ROOT / "web" / "docs" / f"{schema.node_id}.md").read_text()
    for entry in schema.inputs:
        assert f"`{entry.id}`" in text, entry.id


def test_load_gives_comfyuis_own_types(loaded):
    import comfy.model_base
    import comfy.sd

    model, clip, vae = loaded
    assert isinstance(model.model, comfy.model_base.Flux2)
    assert isinstance(clip, comfy.sd.CLIP) and isinstance(vae, comfy.sd.VAE)


@pytest.mark.parametrize("precision, dtype", [("bf16", torch.bfloat16), ("fp32", torch.float32),
                                              ("fp8 (e4m3)", torch.float8_e4m3fn)])  # fmt: skip
def test_precision_is_how_the_weights_are_stored(nodes, precision, dtype):
    with torch.inference_mode():
        model = nodes["Flux2Load"].execute(flavour="nano", precision=precision).args[0]
    assert model.model.diffusion_model.double_blocks[0].img_attn.qkv.weight.dtype == dtype


def load_error(nodes, flavour, **inputs) -> str:
    with pytest.raises(ValueError) as error:
        nodes["Flux2Load"].execute(flavour=flavour, precision="as in file", **inputs)
    return str(error.value)


def test_missing_files_are_told_apart_by_name_folder_repository_and_gate(nodes):
    message = load_error(nodes, "klein-9b")
    assert "Missing model file flux-2-klein-base-9b.safetensors" in message
    assert "/diffusion_models" in message and "gated" in message and "hf auth login" in message
    assert "https://huggingface.co/black-forest-labs/FLUX.2-klein-base-9B/resolve/main/flux-2-klein-base-9b" in message
    assert "Also usable: flux-2-klein-base-9b-fp8.safetensors" in message
    open_one = load_error(nodes, "klein-4b", variant="distilled")
    assert "flux-2-klein-4b.safetensors" in open_one and "gated" not in open_one
    assert "not-there.safetensors is not in" in load_error(nodes, "nano", transformer="not-there.safetensors")
    chosen = load_error(nodes, "klein-9b", transformer="flux-2-klein-base-9b-fp8.safetensors")
    assert "Missing model file flux-2-klein-base-9b-fp8.safetensors: download it from https://" in chosen


def test_a_chosen_file_that_is_missing_names_the_one_that_is_there(nodes, comfy_folders):
    there = comfy_folders / "diffusion_models" / "flux-2-klein-base-9b.safetensors"
    there.touch()
    try:
        message = load_error(nodes, "klein-9b", transformer="flux-2-klein-base-9b-fp8.safetensors")
        assert message.endswith("Or choose 'auto', which takes the flux-2-klein-base-9b.safetensors that you have.")
    finally:
        there.unlink()


def test_a_file_of_another_flavour_is_refused(nodes, loaded, comfy_folders):
    from safetensors.torch import save_file

    from flux2_train import nano

    save_file(nano.transformer(), comfy_folders / "diffusion_models" / "flux-2-klein-base-4b.safetensors")
    try:
        with pytest.raises(ValueError, match="flux-2-klein-base-4b.safetensors is nano, not klein-4b"):
            nodes["Flux2Load"].execute(
                flavour="klein-4b", precision="as in file", text_encoder=nano.TEXT_ENCODER, vae=nano.VAE
            )
    finally:
        (comfy_folders / "diffusion_models" / "flux-2-klein-base-4b.safetensors").unlink()


def test_dataset_folder_finds_the_example_and_stays_where_it_is_told(nodes, dataset, comfy_folders):
    assert len(dataset.items) >= 12 and dataset.trigger == "zbot"
    assert len({item.size for item in dataset.items}) >= 3
    with pytest.raises(ValueError, match=r"'\.\./secrets' is no folder name"):
        nodes["Flux2DatasetFolder"].execute(folder="../secrets", resolution=64, trigger="", class_word="")
    own = comfy_folders / "input" / "robot"
    own.mkdir()
    try:
        with pytest.raises(ValueError, match="holds no usable image"):  # the user's folder of that name comes first
            nodes["Flux2DatasetFolder"].execute(folder="robot", resolution=64, trigger="", class_word="")
    finally:
        own.rmdir()


def test_an_edited_caption_changes_the_fingerprint(nodes, tmp_path):
    (tmp_path / "a.txt").write_text("one")
    before = nodes["Flux2DatasetFolder"].fingerprint_inputs(folder=str(tmp_path), captions="x")
    (tmp_path / "a.txt").write_text("other")
    assert nodes["Flux2DatasetFolder"].fingerprint_inputs(folder=str(tmp_path), captions="x") != before


@pytest.mark.long
def test_caches_train_apply_and_sample(nodes, loaded, few, comfy_folders):
    model, clip, vae = loaded
    with torch.inference_mode():
        embeds = nodes["Flux2CacheEmbeds"].execute(clip, few).args[0]
        latents = nodes["Flux2CacheLatents"].execute(vae, few).args[0]
        lora, loss, name, plot = nodes["Flux2LoraTrainer"].execute(
            model, embeds, latents, name="unit", steps=2, rank=2, learning_rate=1e-3, validation_items=0
        ).args  # fmt: skip
        assert len(loss["loss"]) == 2 and name == "unit.safetensors" and plot.shape[-1] == 3
        assert (comfy_folders / "loras" / name).is_file()
        report = json.loads((comfy_folders / "output" / "flux2_train" / "unit" / "report.json").read_text())
        assert report["steps"] == 2 and report["adapters"] == 28
        shown = nodes["Flux2LoraApply"].execute(model, 1.0, lora)
        applied = shown.args[0]
        assert shown.ui["flux2_text"][0].startswith("trigger: zbot\n")
        from_file = nodes["Flux2LoraApply"].execute(model, 1.0, None, name).args[0]
        common = {
            "prompt": "zbot",
            "steps": 2,
            "guidance": 0.0,
            "sampler": "euler",
            "width": 64,
            "height": 48,
            "seed": 1,
        }
        a, b = (nodes["Flux2Sampler"].execute(m, clip, vae, **common).args[0] for m in (applied, from_file))
    assert a.shape == (1, 48, 64, 3) and torch.equal(a, b)


@pytest.mark.long
def test_save_options_reach_the_file_and_the_merged_model_acts_like_the_lora(nodes, loaded, few, comfy_folders):
    model, clip, vae = loaded
    with torch.inference_mode():
        embeds = nodes["Flux2CacheEmbeds"].execute(clip, few).args[0]
        latents = nodes["Flux2CacheLatents"].execute(vae, few).args[0]
        save = (
            nodes["Flux2SaveOptions"].execute(format="kohya", precision="fp32", plain_rank=0, certificate=True).args[0]
        )
        lora, _, name, _ = nodes["Flux2LoraTrainer"].execute(
            model, embeds, latents, name="options", steps=2, rank=2, learning_rate=0.1, validation_items=0, save=save
        ).args  # fmt: skip
        with safe_open(comfy_folders / "loras" / name, "pt") as file:
            assert all(key.startswith("lora_unet_") for key in file.keys())  # noqa: SIM118
            assert "all 28 layers, 100% of the trained strength" in file.metadata()["flux2_train.certificate"]
        base = TRANSFORMER
        merged = nodes["Flux2SaveMergedModel"].execute(base, name, 1.0, "merged", "fp32").args[0]
        merged_model = nodes["Flux2Load"].execute(flavour="nano", precision="as in file", transformer=merged).args[0]
        other = with_few_words(merged_model)
        common = {
            "prompt": "zbot",
            "steps": 1,
            "guidance": 0.0,
            "sampler": "euler",
            "width": 64,
            "height": 48,
            "seed": 1,
        }
        images = [
            nodes["Flux2Sampler"].execute(m, clip, vae, **common).args[0]
            for m in (other, nodes["Flux2LoraApply"].execute(model, 1.0, lora, mode="bypass").args[0], model)
        ]
    assert (images[0] - images[1]).abs().max() < 0.02 * (images[1] - images[2]).abs().max() + 1e-4
    for bad in ("../x", " "):
        with pytest.raises(ValueError, match="cannot be a file name"):
            nodes["Flux2SaveMergedModel"].execute(base, name, 1.0, bad, "source")
    with pytest.raises(ValueError, match="has no LoRA"):
        nodes["Flux2SaveMergedModel"].execute(base, "none", 1.0, "y", "source")


def test_apply_without_a_lora_says_what_to_do(nodes, loaded):
    with pytest.raises(ValueError, match="wire LoRA Trainer into 'lora' or choose a file"):
        nodes["Flux2LoraApply"].execute(loaded[0], 1.0)


def test_import_settings_reads_the_input_folder_and_writes_a_job(nodes, comfy_folders, tmp_path):
    peers.write(comfy_folders / "input" / "their.json", peers.SIMPLETUNER)
    peers.write(comfy_folders / "input" / "data.json", peers.SIMPLETUNER_DATA)
    node = nodes["Flux2ImportSettings"]
    report, first = node.execute(file="their.json", dataset="data.json").args
    assert "used as training.rank = 16" in report and "0 unknown" in report
    assert Path(first) == comfy_folders / "output" / "flux2_train" / "imported" / "their.json"
    assert job.load(Path(first)).dataset[0].repeats == 11
    second = node.execute(file=str(comfy_folders / "input" / "their.json"), dataset="robot", flavour="nano").args[1]
    assert Path(second).name == "their_2.json" and job.load(Path(second)).dataset[0].folder.name == "robot"
    assert job.load(Path(second)).model.flavour == "nano"
    for file, name, words in (("../x.json", "", "is no file name"), ("none.json", "", "There is no file"),
                              ("their.json", "a/b", "cannot be a file name")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            node.execute(file=file, name=name)
    peers.write(tmp_path / "whole.json", peers.ONETRAINER_FINE_TUNE)
    with pytest.raises(ValueError, match="whole.json cannot become a job: training_method is 'FINE_TUNE'"):
        node.execute(file=str(tmp_path / "whole.json"))


def test_what_is_filled_in_the_graph_are_widgets_of_the_nodes(nodes, comfy_folders):
    """Names and values that the nodes themselves take, whatever was imported."""
    peers.write(comfy_folders / "input" / "graph.json", peers.AI_TOOLKIT)
    shown = nodes["Flux2ImportSettings"].execute(file="graph.json", name="graph").ui["flux2_settings"][0]
    assert {"Flux2LoraTrainer", "Flux2DatasetFolder", "Flux2CropOptions", "Flux2Timesteps", "Flux2Validation"} <= set(
        shown
    )
    assert "Flux2Preservation" not in shown and "Flux2Memory" not in shown  # all at their defaults
    assert shown["Flux2LoraTrainer"][0]["steps"] == 3000 and shown["Flux2Timesteps"][0]["distribution"] == "weighted"
    assert shown["Flux2CropOptions"][0]["resolutions"] == "512, 768, 1024"
    for kind, entries in shown.items():
        inputs = {entry.id: entry for entry in nodes[kind].GET_SCHEMA().inputs}
        known = [values.keys() & inputs.keys() for values in entries]
        assert all(len(names) > 0.8 * len(values) for names, values in zip(known, entries, strict=True)), kind
        for names, values in zip(known, entries, strict=True):
            for name in names:
                options = getattr(inputs[name], "options", None)
                assert not options or values[name] in options, (kind, name)


def test_keys_that_match_nothing_are_left_out_only_if_allowed(nodes, loaded):
    layer = loaded[0].model.diffusion_model.single_blocks[0].linear2
    name = "diffusion_model.single_blocks.0.linear2"
    lora = {
        f"{name}.lora_A.weight": torch.zeros(2, layer.in_features),
        f"{name}.lora_B.weight": torch.zeros(layer.out_features, 2),
        "lora_te1_x.alpha": torch.tensor(1.0),
    }
    with pytest.raises(ValueError, match="1 of 3 keys of this LoRA match nothing"):
        nodes["Flux2LoraApply"].execute(loaded[0], 1.0, lora)
    assert nodes["Flux2LoraApply"].execute(loaded[0], 1.0, lora, allow_unmatched=True).args[0] is not loaded[0]


@pytest.mark.long
def test_what_was_learned_is_saved_when_the_user_cancels(nodes, loaded, few, comfy_folders, monkeypatch):
    import comfy.model_management

    model, clip, vae = loaded
    with torch.inference_mode():
        embeds = nodes["Flux2CacheEmbeds"].execute(clip, few).args[0]
        latents = nodes["Flux2CacheLatents"].execute(vae, few).args[0]

        def cancel_after_two(value, total, preview, **_):  # ComfyUI's bar leaves out what comes too soon
            if value >= 2:
                raise comfy.model_management.InterruptProcessingException

        monkeypatch.setattr("comfy.utils.PROGRESS_BAR_HOOK", cancel_after_two)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            nodes["Flux2LoraTrainer"].execute(
                model, embeds, latents, name="cancelled", steps=99, rank=2, learning_rate=1e-3, validation_items=0
            )  # fmt: skip
    (saved,) = (comfy_folders / "loras").glob("cancelled*")
    assert 2 <= int(saved.stem.removeprefix("cancelled_step")) < 99
