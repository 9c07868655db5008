"""What other trainers' values mean here, against computations and facts that do not come from the importers."""

import json
import math
import sys

import peer_configs as peers
import pytest
import torch

from flux2_train.flavours import FLAVOURS
from flux2_train.flow import times
from flux2_train.importers import importing, layers
from flux2_train.importers.musubi.values import split
from flux2_train.importers.onetrainer.values import curve

TOML = pytest.mark.skipif(sys.version_info < (3, 11), reason="this Python reads no TOML")
U = torch.linspace(0.0005, 0.9995, 1000, dtype=torch.float64)


def job(tmp_path, content, name="config.json", data=None, flavour="klein-9b"):
    data_file = None
    if data is not None:
        data_file = peers.write(tmp_path / ("data.toml" if isinstance(data, str) else "data.json"), data)
    result = importing.import_file(peers.write(tmp_path / name, content), data_file, flavour)
    assert result.job is not None, result.blockers
    return result.job


def simpletuner(tmp_path, data=None, **changes):
    return job(tmp_path, {**peers.SIMPLETUNER, **changes}, data=data or peers.SIMPLETUNER_DATA)


def ai_toolkit(tmp_path, **sections):
    process = json.loads(json.dumps(peers.AI_TOOLKIT_PROCESS))
    for name, values in sections.items():
        process["datasets"][0].update(values) if name == "data" else process.setdefault(name, {}).update(values)
    return job(tmp_path, {"job": "extension", "config": {"name": "a", "process": [process]}}, "job.json")


def musubi(tmp_path, options, version="klein-base-9b"):
    line = f"python flux_2_train_network.py --model_version {version} --network_module networks.lora_flux_2 {options}"
    return job(tmp_path, line, "train.sh", flavour="").training


def onetrainer(tmp_path, **changes):
    return job(tmp_path, {**peers.ONETRAINER, **changes}, "preset.json")


def diffusers(tmp_path, options, script="train_dreambooth_lora_flux2_klein"):
    line = f"accelerate launch {script}.py --pretrained_model_name_or_path black-forest-labs/FLUX.2-klein-base-4B "
    return job(tmp_path, line + options, "train.sh", flavour="")


def test_alpha_is_what_was_in_effect_there(tmp_path):
    assert musubi(tmp_path, "--network_dim 32").alpha == 1  # its own default
    assert musubi(tmp_path, "--network_dim 32 --network_alpha 16").alpha == 16
    assert ai_toolkit(tmp_path, network={"linear": 32, "linear_alpha": 8}).training.scale_alpha == 32
    assert onetrainer(tmp_path).training.alpha == 1
    assert simpletuner(tmp_path, lora_alpha=None).training.scale_alpha == 16
    assert diffusers(tmp_path, "--rank 8").training.alpha == 4


@pytest.mark.parametrize("rate, made", [
    (4e-7, lambda p: simpletuner(p, learning_rate=None).training),
    (1e-6, lambda p: ai_toolkit(p, train={"lr": None}).training),
    (2e-6, lambda p: musubi(p, "")), (3e-6, lambda p: onetrainer(p, learning_rate=None).training),
    (1e-4, lambda p: diffusers(p, "").training),
])  # fmt: skip
def test_a_learning_rate_that_is_not_set_is_that_trainers_default(tmp_path, rate, made):
    assert made(tmp_path).learning_rate == pytest.approx(rate)


@pytest.mark.parametrize("theirs, ours", [(0, 1), (10, 11), (None, 1)])
def test_simpletuner_counts_further_times(tmp_path, theirs, ours):
    data = [{**peers.SIMPLETUNER_DATA[0], "repeats": theirs}]
    assert simpletuner(tmp_path, data).dataset[0].repeats == ours


def test_steps_and_epochs(tmp_path):
    assert simpletuner(tmp_path).training.steps == 100
    epochs = simpletuner(tmp_path, max_train_steps=0, num_train_epochs=3).training
    assert (epochs.steps, epochs.epochs) == (0, 3)
    assert (musubi(tmp_path, "").steps, musubi(tmp_path, "--max_train_epochs 16").steps) == (1600, 0)
    assert (onetrainer(tmp_path).training.steps, onetrainer(tmp_path, epochs=7).training.epochs) == (0, 7)
    assert diffusers(tmp_path, "").training.epochs == 1
    assert diffusers(tmp_path, "--max_train_steps 9 --num_train_epochs 4").training.steps == 9


@pytest.mark.parametrize("kind, value, resolution, ours", [
    ("pixel_area", 1024, 1024, "pixel_area"), ("pixel", 512, 512, "pixel"),
    ("area", 1.05, 1024, "pixel_area"), ("area", 0.25, 496, "pixel_area"),  # sqrt of so many millions, by 16
])  # fmt: skip
def test_simpletuners_three_units_of_a_resolution(tmp_path, kind, value, resolution, ours):
    entry = {**peers.SIMPLETUNER_DATA[0], "resolution": value, "resolution_type": kind, "minimum_image_size": value}
    made = simpletuner(tmp_path, [{**entry, "maximum_image_size": 0}]).dataset[0]
    assert (made.resolution, made.crop_options.resolution_type) == (resolution, ours)
    assert (made.crop_options.minimum, made.crop_options.too_small) == (resolution, "skip")


def test_simpletuners_references_become_folders_shown_as_clean(tmp_path):
    made = simpletuner(tmp_path, peers.SIMPLETUNER_EDITS)
    (dataset,) = made.dataset
    assert [str(path) for path in dataset.references] == ["/data/references"]
    assert dataset.reference_options.kind == "strict"
    assert made.training.guidance.references == "index_timestep_zero"
    assert simpletuner(tmp_path).training.guidance.references == "index"


def test_simpletuners_tread_keeps_what_it_does_not_leave_out(tmp_path):
    routes = [{"selection_ratio": 0.4, "start_layer_idx": 2, "end_layer_idx": 9},
              {"selection_ratio": 0.75, "start_layer_idx": 10, "end_layer_idx": -3}]  # fmt: skip
    path = peers.write(tmp_path / "config.json", {**peers.SIMPLETUNER, "tread_config": {"routes": routes}})
    imported = importing.import_file(path)
    rows = [row for row in imported.rows if "selection_ratio" in row.key]
    assert len(rows) == 2 and all("fraction of tokens left out" in row.text for row in rows)
    routing = imported.job.training.routing
    assert routing.routes == ((2, 9, pytest.approx(0.6)), (10, -3, 0.25)) and routing.until == 100


def test_simpletuners_scheduled_sampling(tmp_path):
    keys = {"max_step_offset": 10, "probability": 0.3, "start_step": 50, "sampler": "unipc"}
    keys = {f"scheduled_sampling_{name}": value for name, value in keys.items()}
    made = simpletuner(tmp_path, **keys).training.rollout
    assert (made.max_offset, made.inference_steps, made.schedule) == (10, 999, "uniform")
    assert (made.probability, made.start_step, made.reflexflow) == (0.3, 50, True)  # which it turns on by itself
    ramp = {"scheduled_sampling_ramp_steps": 100, "scheduled_sampling_prob_end": 0.6}
    made = simpletuner(tmp_path, **keys, **ramp, scheduled_sampling_reflexflow=False).training.rollout
    assert (made.probability, made.ramp_steps, made.reflexflow) == (0.6, 100, False)
    assert simpletuner(tmp_path, scheduled_sampling_probability=0.5).training.rollout.probability == 0


def test_lycoris_with_whole_matrices_has_scale_one(tmp_path):
    peers.write(tmp_path / "lycoris_config.json", peers.LYCORIS)
    made = job(tmp_path, peers.SIMPLETUNER_LYCORIS, data=peers.SIMPLETUNER_DATA).training
    assert (made.adapter.kind, made.adapter.lokr_factor, made.rank, made.alpha) == ("lokr", 4, 1024, 0)
    assert made.adapter.dropout == 0  # lora_dropout is of plain LoRA


@pytest.mark.parametrize("name, distribution, shift", [
    ("sigmoid", "sigmoid", "none"), ("linear", "uniform", "none"), ("weighted", "weighted", "none"),
    ("shift", "uniform", "linear"), ("flux_shift", "uniform", "linear"),
])  # fmt: skip
def test_ai_toolkits_times(tmp_path, name, distribution, shift):
    made = ai_toolkit(tmp_path, train={"timestep_type": name}).training.timesteps
    assert (made.distribution, made.shift) == (distribution, shift)


@pytest.mark.parametrize("name, indices", [("one_step", [0]), ("two_step", [0, 499]), ("four_step", [0, 250, 500, 750]),
                                           ("eight_step", [0, 125, 250, 375, 500, 625, 750, 875])])  # fmt: skip
def test_ai_toolkits_lists_of_times_are_indices_into_a_thousand(tmp_path, name, indices):
    table = torch.linspace(1000, 1, 1000, dtype=torch.float64)[indices] / 1000
    made = ai_toolkit(tmp_path, train={"timestep_type": name}).training.timesteps
    assert made.distribution == "list" and torch.allclose(torch.tensor(made.values).double(), table, atol=2e-3)


def test_ai_toolkits_switches_take_their_strength_from_a_second_key(tmp_path):
    off = ai_toolkit(tmp_path).training
    assert (off.preservation, off.ema.ema_decay, off.guidance.contrastive_guidance) == (0, 0, 1)
    made = ai_toolkit(tmp_path, train={
        "diff_output_preservation": True, "diff_output_preservation_multiplier": 0.5,
        "ema_config": {"use_ema": True, "ema_decay": 0.97}, "do_guidance_loss": True, "guidance_loss_target": 4.0,
        "max_denoising_steps": 800, "min_denoising_steps": 100, "content_or_style": "content",
    })  # fmt: skip
    chosen = made.training
    assert (chosen.preservation, chosen.preservation_options.kind) == (0.5, "class")
    assert (chosen.ema.ema_decay, chosen.guidance.contrastive_guidance) == (0.97, 4)
    assert (chosen.timesteps.min, chosen.timesteps.max, chosen.timesteps.bias) == (0.2, 0.9, "high noise")


def test_ai_toolkits_data(tmp_path):
    made = ai_toolkit(tmp_path, data={
        "control_path_1": "/a", "control_path_2": "/b", "shuffle_tokens": True, "mask_path": "/m",
        "control_transparent_color": [255, 0, 16], "default_caption": "a cat", "resolution": 768,
    }).dataset[0]  # fmt: skip
    assert [str(path) for path in made.references] == ["/a", "/b"]
    assert (made.background, made.prompt, made.resolution) == ("#ff0010", "a cat", 768)
    assert (made.caption_options.shuffle, str(made.mask_options.folder), made.mask_options.minimum) == (10, "/m", 0.1)
    assert (made.crop_options.crop_aspect, made.crop_options.upscale) == ("preserve", False)


def test_a_row_of_ai_toolkits_window_is_the_job_in_it(tmp_path):
    row = {"id": "7", "name": "x", "status": "stopped", "step": 3, "job_config": json.dumps(peers.AI_TOOLKIT)}
    stored = importing.import_file(peers.write(tmp_path / "row.json", row))
    plain = importing.import_file(peers.write(tmp_path / "job.json", peers.AI_TOOLKIT))
    assert stored.job == plain.job and len(stored.rows) == len(plain.rows) + 4


def test_musubis_times_against_its_formulas(tmp_path):
    logsnr = musubi(tmp_path, "--timestep_sampling logsnr --logit_mean 1 --logit_std 3").timesteps
    ours = times.logit_normal(U, logsnr.sigmoid_scale, logsnr.sigmoid_mean, logsnr.sigmoid_std)
    theirs = torch.sigmoid(-(1 + 3 * torch.special.ndtri(U)) / 2).sort().values
    assert torch.allclose(ours, theirs) and logsnr.shift == "none"
    shifted = musubi(tmp_path, "--timestep_sampling shift --discrete_flow_shift 2.5 --sigmoid_scale 0.7").timesteps
    assert (shifted.shift, shifted.shift_factor, shifted.sigmoid_scale) == ("constant", 2.5, 0.7)
    assert musubi(tmp_path, "--timestep_sampling flux2_shift").timesteps.shift == "linear"
    table = musubi(tmp_path, "--weighting_scheme logit_normal --logit_mean -0.5").timesteps  # sigma is its default
    assert (table.distribution, table.sigmoid_mean, table.shift, table.weighting) == ("sigmoid", -0.5, "none", "none")
    limits = musubi(tmp_path, "--min_timestep 100 --max_timestep 900 --weighting_scheme cosmap").timesteps
    assert (limits.min, limits.max, limits.weighting, limits.distribution) == (0.1, 0.9, "cosmap", "uniform")


@pytest.mark.parametrize("version, most, doubles, singles", [
    ("dev", 29, 6, 44), ("klein-base-9b", 16, 6, 18), ("klein-4b", 13, 3, 18)])  # fmt: skip
def test_the_most_blocks_that_musubi_swaps(tmp_path, version, most, doubles, singles):
    """Its documents give the numbers, its code the blocks: two of each kind always stay."""
    flavour = version.replace("base-", "")
    assert split(most, *FLAVOURS[flavour].sizes[1:3]) == (doubles, singles)
    assert musubi(tmp_path, f"--blocks_to_swap {most}", version).memory.blocks_to_swap == doubles + singles


def test_musubis_network_and_optimizer_arguments(tmp_path):
    made = musubi(tmp_path, "--network_args loraplus_lr_ratio=4 \"exclude_patterns=[r'.*single_blocks.*']\" "
                  "--optimizer_type bitsandbytes.optim.AdamW8bit --optimizer_args weight_decay=0.1 betas=0.9,0.95 "
                  "--lr_warmup_steps 10% --save_every_n_steps 100 --save_last_n_steps 400")  # fmt: skip
    assert (made.adapter.lora_plus, made.adapter.exclude) == (4, "*single_blocks*")
    assert (made.optimizer.optimizer, made.optimizer.weight_decay, made.optimizer.betas) == (
        "adamw8bit",
        0.1,
        (0.9, 0.95),
    )
    assert made.optimizer.warmup == pytest.approx(0.1)
    assert (made.checkpoints.lora_every, made.checkpoints.lora_keep) == (100, 4)


def test_optimizers_of_libraries_become_their_class(tmp_path):
    made = musubi(tmp_path, "--optimizer_type torch.optim.Muon --optimizer_args momentum=0.8 nesterov=False").optimizer
    assert (made.optimizer, made.other) == ("other", "torch.optim.Muon")
    assert dict(made.other_arguments) == {"momentum": 0.8, "nesterov": False}
    assert musubi(tmp_path, "--optimizer_type my.own.Class").optimizer.optimizer == "adamw"
    assert simpletuner(tmp_path, optimizer="optimi-stableadamw").training.optimizer.other.endswith(".StableAdamW")
    made = onetrainer(tmp_path, optimizer={"optimizer": "CAME"}).training.optimizer
    assert made.other == "pytorch_optimizer.CAME"


def test_ai_toolkits_concept_slider_is_one_of_prompts(tmp_path):
    process = json.loads(json.dumps(peers.AI_TOOLKIT_PROCESS))
    process |= {"type": "concept_slider", "slider": {
        "target_class": "a person", "positive_prompt": "old", "negative_prompt": "young", "guidance_strength": 2.5,
    }}  # fmt: skip
    made = job(tmp_path, {"job": "extension", "config": {"name": "a", "process": [process]}}, "job.json")
    slider = made.training.slider
    assert (slider.slider, slider.positive, slider.negative, slider.neutral, slider.slider_guidance) == (
        "prompts", "old", "young", "a person", 2.5,
    )  # fmt: skip
    assert made.embeds.texts == ["old", "young", "a person"]


def test_files_on_the_way(tmp_path):
    made = musubi(tmp_path, "--save_every_n_epochs 2 --save_last_n_epochs 6").checkpoints
    assert (made.lora_every, made.every_epochs, made.keep) == (0, 2, 3)
    made = ai_toolkit(tmp_path).training.checkpoints
    assert (made.lora_every, made.lora_keep) == (250, 4)
    for unit, ours in (("STEP", 50), ("EPOCH", 0), ("NEVER", 0)):
        made = onetrainer(tmp_path, save_every=50, save_every_unit=unit).training.checkpoints
        assert made.lora_every == ours


@TOML
def test_musubis_data_inherits_from_general(tmp_path):
    text = peers.MUSUBI_DATA + '\n[[datasets]]\nimage_directory = "/b"\nresolution = 512\nenable_bucket = false\n'
    made = job(tmp_path, text, "data.toml")
    first, second = made.dataset
    assert (first.resolution, first.crop_options.aspects, first.repeats) == (720, (), 2)  # sqrt(960 * 544) by 16
    assert [str(path) for path in first.references] == ["/path/to/control_dir"]
    assert (second.resolution, second.crop_options.aspects, second.captions) == (512, (1,), "text file")


@TOML
def test_kohyas_subsets_inherit_and_each_data_set_keeps_its_batch_size(tmp_path):
    result = importing.import_file(peers.write(tmp_path / "data.toml", peers.KOHYA))
    assert [each.caption_options.keep_tokens for each in result.job.dataset] == [2, 3, 1, 1]
    assert [each.resolution for each in result.job.dataset] == [512, 512, 512, 768]
    assert [each.is_reg for each in result.job.dataset] == [False, False, True, False]
    told = {row.key: row for row in result.rows}
    assert result.job.training.batch == 4 and not told["datasets[1].batch_size"].differs
    assert [each.batch for each in result.job.dataset] == [0, 0, 0, 2]
    assert "dataset.batch of this data set" in told["datasets[1].batch_size"].text


def test_onetrainers_times_against_its_densities(tmp_path):
    normal = onetrainer(tmp_path, noising_weight=0.5, noising_bias=-0.3).training.timesteps
    assert (normal.distribution, normal.sigmoid_mean, normal.sigmoid_std, normal.shift) == (
        "sigmoid",
        -0.3,
        1.5,
        "linear",
    )
    tail = onetrainer(tmp_path, timestep_distribution="HEAVY_TAIL", noising_weight=0.8).training.timesteps
    v = 1 - U
    theirs = 1 - v - 0.8 * (torch.cos(math.pi / 2 * v) ** 2 - 1 + v)
    assert tail.distribution == "mode" and torch.allclose(times.mode(U, tail.mode_scale), theirs)
    beta = onetrainer(tmp_path, timestep_distribution="BETA", noising_weight=0.7, noising_bias=1.0).training.timesteps
    assert torch.allclose(times.beta(U, beta.beta_alpha, beta.beta_beta), U ** (1 / 0.7), atol=1e-6)


@pytest.mark.parametrize("name, cumulative", [
    ("COS_MAP", lambda t: 1 - 2 / math.pi * torch.atan(1 / t - 1)),
    ("SIGMOID", lambda t: torch.log((1 + torch.exp(5 * (t - 0.5))) / (1 + math.exp(-2.5)))
     / math.log((1 + math.exp(2.5)) / (1 + math.exp(-2.5)))),
    ("INVERTED_PARABOLA", lambda t: (2 * t - 5 / 3 * ((t - 0.5) ** 3 + 0.125)) / (2 - 5 / 12)),
])  # fmt: skip
def test_onetrainers_other_densities_are_drawn_as_curves(name, cumulative):
    drawn = times.density(U, curve(name, 5.0, 0.0))
    assert torch.allclose(cumulative(drawn), U, atol=2e-3)


def test_onetrainers_ema_follows_every_step_here(tmp_path):
    made = onetrainer(tmp_path, ema="GPU", ema_decay=0.99, ema_update_step_interval=5).training.ema
    assert made.ema_decay**5 == pytest.approx(0.99, abs=1e-5)
    assert onetrainer(tmp_path, ema="OFF", ema_decay=0.99).training.ema.ema_decay == 0


def test_onetrainers_concepts(tmp_path):
    concepts = [
        {"path": "/a", "text": {"prompt_source": "sample"}, "image": {"enable_random_flip": True}, "balancing": 3.0},
        {"path": "/v", "text": {}, "type": "VALIDATION"},
        {"path": "/r", "text": {}, "type": "PRIOR_PREDICTION", "balancing": 0.5, "loss_weight": 2.0},
        {"path": "/off", "text": {}, "enabled": False},
    ]
    made = onetrainer(tmp_path, concepts=concepts)
    first, prior = made.dataset
    assert (first.repeats, first.crop_options.flip_x, first.subfolders) == (3, True, False)
    assert (prior.is_reg, prior.base_target, prior.probability, prior.loss_weight) == (True, True, 0.5, 2)
    assert [str(each.folder) for each in made.held_out] == ["/v"]


def test_diffusers_trains_a_part_of_the_layers(tmp_path):
    names = [f"double_blocks.{n}.{s}_{part}" for n in range(5) for s in ("img", "txt")
             for part in ("attn.qkv", "attn.proj", "mlp.0", "mlp.2")]  # fmt: skip
    names += [f"single_blocks.{n}.linear{k}" for n in range(20) for k in (1, 2)]
    from flux2_train.adapters.patterns import restricted

    made = diffusers(tmp_path, "")
    chosen = restricted(names, made.training.adapter.include, "", "a model")
    assert chosen == {name for name in names if "img_attn" in name or "linear" in name}
    assert layers.patterns(["transformer_blocks.0.ff_context.linear_in"]) == "double_blocks.*.txt_mlp.0"


def test_diffusers_prior_preservation_is_a_second_data_set(tmp_path):
    options = ("--instance_data_dir /a --instance_prompt 'a sks dog' --class_data_dir /c --class_prompt 'a dog' "
               "--prior_loss_weight 0.5")  # fmt: skip
    first, prior = diffusers(tmp_path, f"{options} --with_prior_preservation").dataset
    assert (first.captions, first.prompt, first.is_reg) == ("one prompt", "a sks dog", False)
    assert (str(prior.folder), prior.prompt, prior.is_reg, prior.loss_weight) == ("/c", "a dog", True, 0.5)
    assert len(diffusers(tmp_path, options).dataset) == 1
