"""OneTrainer: how single values become ours."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..common import area_side, last_name, put_class
from ..convert import betas as both_betas
from ..convert import file_name, flag, number, oneof, whole
from ..draft import NotHere, Section
from ..layers import patterns
from ..rules import Differs

DTYPES = {
    "BFLOAT_16": "bf16", "FLOAT_16": "fp16", "FLOAT_32": "fp32", "TFLOAT_32": "fp32", "INT_8": "int8",
    "INT_W8A8": "int8", "INT_W8A8_COMPRESSED": "int8", "FLOAT_8": "fp8 (scaled)", "FLOAT_W8A8": "fp8 (scaled)",
    "FLOAT_W8A8_COMPRESSED": "fp8 (scaled)", "NFLOAT_4": "nvfp4",
}  # fmt: skip
OPTIMIZERS = {
    "ADAMW": "adamw", "ADAM": "adamw", "ADAMW_8BIT": "adamw8bit", "ADAM_8BIT": "adamw8bit", "ADAFACTOR": "adafactor",
    "PRODIGY": "prodigy", "LION": "lion", "LION_8BIT": "lion", "SCHEDULE_FREE_ADAMW": "schedulefree",
}  # fmt: skip
CLASSES = {"CAME": "pytorch_optimizer.CAME", "MUON": "torch.optim.Muon", "SGD": "torch.optim.SGD"}
SCHEDULES = {
    "CONSTANT": "constant", "LINEAR": "linear", "COSINE": "cosine", "COSINE_WITH_RESTARTS": "cosine with restarts",
    "COSINE_WITH_HARD_RESTARTS": "cosine with restarts", "REX": "rex",
}  # fmt: skip
FORMATS = {
    "DIFFUSERS_LORA": "diffusers", "KOHYA_LORA": "kohya", "COMFY_LORA": "comfyui", "ORIGINAL_LORA": "comfyui",
    "LEGACY_LORA": "kohya", "SAFETENSORS": "comfyui",
}  # fmt: skip
LOSSES = {"mse_strength": "mse", "mae_strength": "mae", "huber_strength": "huber", "log_cosh_strength": ""}
KNOTS = 41  # heights of a density drawn as a curve
PLACE = "training.timesteps"


def nothing(value: Any, section: Section) -> None:
    """The key is read together with another."""


def precision(place: str) -> Callable[[Any, Section], None]:
    """A way to store weights; W8A8 also computes in 8 bits there."""
    return lambda value, section: section.put(
        place, oneof(DTYPES, "no precision here is like that; the model is loaded as its file is")(value)
    )


def kind(value: Any, section: Section) -> str | None:
    """LoRA, LoHa or LoKr; the last has a rank and a factor of its own."""
    name = oneof({"LORA": "lora", "LOHA": "loha", "LOKR": "lokr"}, "this kind is not here; it is LoRA")(value)
    section.put("training.adapter.kind", name)
    if name == "lokr":
        section.put("training.rank", whole(section.get("lokr_dim", 16)))
        section.put("training.adapter.lokr_factor", whole(section.get("lokr_decompose_factor", -1)))
        section.put("training.adapter.lokr_decompose_both", flag(section.get("lokr_decompose_both", False)))
    return None


def rank(value: Any, section: Section) -> str | None:
    """The rank, unless LoKr has its own."""
    if section.get("peft_type") == "LOKR":
        return "lokr_dim counts"
    section.put("training.rank", whole(value))
    return None


def full_matrix(value: Any, section: Section) -> str | None:
    """LoKr without a low rank."""
    if section.get("peft_type") != "LOKR" or not flag(value):
        return "off"
    section.put("training.rank", 1024)
    return Differs(
        "the larger matrix is whole where the rank is at least half of its longer side; 1024 is the largest here"
    )


def dora(value: Any, section: Section) -> str | None:
    """DoRA, whose magnitude is of the outputs here."""
    if flag(value) and section.get("peft_type", "LORA") != "LORA":
        raise NotHere("DoRA is for LoRA alone here")
    section.put("training.adapter.dora", flag(value))
    if flag(value) and not flag(section.get("lora_decompose_output_axis", False)):
        return Differs("here a magnitude for each output, as in the paper; there for each input")
    return None


def layers(value: Any, section: Section) -> str | None:
    """Parts of names; those that are all blocks need no pattern."""
    preset, names = str(section.get("layer_filter_preset", "full")), str(value)
    if preset == "full" and not names:
        return Differs("there the Linears outside the blocks learn too; here those of the blocks")
    if preset == "blocks" or names.strip() == "transformer_block":
        section.put("training.targets", "all")
        return "all Linears of the blocks"
    if flag(section.get("layer_filter_regex", False)):
        raise NotHere("a regular expression; write patterns with * into adapter.include")
    section.put("training.adapter.include", patterns(names.split(",")))
    return None


def resolution(value: Any, section: Section) -> str | None:
    """One size, several with commas, or WIDTHxHEIGHT."""
    sizes = []
    for word in str(value).replace(" ", "").split(","):
        width, _, height = word.partition("x")
        sizes.append(area_side(width, height or width))
    section.put("dataset.resolution", max(sizes))
    if len(sizes) > 1:
        section.put("dataset.crop_options.resolutions", sizes)
        return Differs("every picture at each of the sizes in every epoch; there one of them by chance")
    return "the area counts" if "x" in str(value) else None


def times(value: Any, section: Section) -> None:
    """The distribution. What is no formula here is drawn as a curve."""
    weight, bias = number(section.get("noising_weight", 0.0)), number(section.get("noising_bias", 0.0))
    name = str(value)
    if name == "UNIFORM":
        section.put(f"{PLACE}.distribution", "uniform")
    elif name == "LOGIT_NORMAL":
        section.put(f"{PLACE}.distribution", "sigmoid")
        section.put(f"{PLACE}.sigmoid_mean", bias)
        section.put(f"{PLACE}.sigmoid_std", weight + 1)
    elif name == "BETA":
        section.put(f"{PLACE}.distribution", "beta")
        section.put(f"{PLACE}.beta_alpha", max(weight, 0.01))
        section.put(f"{PLACE}.beta_beta", max(bias, 0.01))
    elif name == "HEAVY_TAIL":
        section.put(f"{PLACE}.distribution", "mode")
        section.put(f"{PLACE}.mode_scale", weight)
    else:
        section.put(f"{PLACE}.values", curve(name, weight, bias))
        section.put(f"{PLACE}.distribution", "curve")


def curve(name: str, weight: float, bias: float) -> list[float]:
    """Heights of its other densities at equal distances from t = 0 to 1. Raises NotHere for an unknown one."""
    densities: dict[str, Callable[[float], float]] = {
        "COS_MAP": lambda t: 2 / (math.pi - 2 * math.pi * t + 2 * math.pi * t**2),
        "SIGMOID": lambda t: 1 / (1 + math.exp(min(700.0, -weight * (t - bias - 0.5)))),
        "INVERTED_PARABOLA": lambda t: max(0.0, 2 - weight * (t - bias - 0.5) ** 2),
    }
    if name not in densities:
        raise NotHere("this distribution is not known here; times are drawn as by sigmoid")
    return [round(densities[name](number_ / (KNOTS - 1)), 4) for number_ in range(KNOTS)]


def shift(value: Any, section: Section) -> str | None:
    """By image size, or constant; 1 is none."""
    if flag(section.get("dynamic_timestep_shifting", False)):
        section.put(f"{PLACE}.shift", "linear")
        return "dynamic_timestep_shifting: by image size"
    factor = number(value)
    section.put(f"{PLACE}.shift", "none" if factor == 1 else "constant")
    if factor != 1:
        section.put(f"{PLACE}.shift_factor", factor)
    return None


def loss(value: Any, section: Section) -> str | None:
    """The one loss whose strength is not 0."""
    strengths = {name: number(section.get(name, 1.0 if name == "mse_strength" else 0.0)) for name in LOSSES}
    on = [name for name, strength in strengths.items() if strength]
    if len(on) != 1 or not LOSSES[on[0]]:
        raise NotHere(f"{' and '.join(on) or 'no loss at all'} cannot be had here; it is mse")
    section.put("training.loss.loss", LOSSES[on[0]])
    if LOSSES[on[0]] == "huber":
        section.put("training.loss.huber_width", number(section.get("huber_delta", 1.0)))
    return None


def ema(value: Any, section: Section) -> str | None:
    """On where the mode is not OFF; there it follows every few steps."""
    if str(value) == "OFF":
        section.put("training.ema.ema_decay", 0.0)
        return "0 is off"
    every = max(1.0, number(section.get("ema_update_step_interval", 5)))
    section.put("training.ema.ema_decay", round(number(section.get("ema_decay", 0.999)) ** (1 / every), 6))
    return f"at every step here, every {every:g} there"


def betas(value: Any, section: Section) -> None:
    """Both betas from two keys."""
    first, second = section.get("optimizer.beta1"), section.get("optimizer.beta2")
    if first is not None and second is not None and section.get("optimizer.optimizer") != "ADAFACTOR":
        section.put("training.optimizer.betas", both_betas(first, second))


def epsilon(value: Any, section: Section) -> str | None:
    """Of the Adams."""
    if section.get("optimizer.optimizer") in ("ADAFACTOR", "LION", "LION_8BIT"):
        return "of its own there"
    section.put("training.optimizer.eps", number(value))
    return None


def offloaded(value: Any, section: Section) -> str | None:
    """A share of the blocks."""
    section.put("training.memory.offload_percent", number(value) * 100)
    return None


def every(amount: str, unit: str) -> Callable[[Any, Section], str | None]:
    """How often the state is kept: an amount and its unit."""

    def take(value: Any, section: Section) -> str | None:
        number_, name = number(section.get(amount, 0)), str(section.get(unit, "NEVER"))
        minutes = {"SECOND": 1 / 60, "MINUTE": 1.0, "HOUR": 60.0}
        if name in minutes:
            section.put("training.checkpoints.every_minutes", round(number_ * minutes[name], 3))
        elif name == "STEP":
            section.put("training.checkpoints.every_steps", whole(number_))
        elif name == "EPOCH":
            section.put("training.checkpoints.every_epochs", whole(number_))
        else:
            return "never"
        return None

    return take


def optimizer(value: Any, section: Section) -> None:
    """By its name, or by its class in a library."""
    if str(value) in CLASSES:
        return put_class(CLASSES[str(value)], section)
    ours = oneof(OPTIMIZERS, "this optimizer is not here; it is adamw")(value)
    return section.put("training.optimizer.optimizer", ours)


def loras_every(value: Any, section: Section) -> str | None:
    """LoRA files on the way count steps here."""
    unit = str(section.get("save_every_unit", "NEVER"))
    if unit == "NEVER":
        return "never"
    if unit != "STEP":
        raise NotHere(
            f"it counts in units of {unit}, and LoRA files on the way count steps; set checkpoints.lora_every"
        )
    section.put("training.checkpoints.lora_every", whole(value))
    return None


def previews_every(value: Any, section: Section) -> str | None:
    """Previews count steps here."""
    unit = str(section.get("sample_after_unit", "MINUTE"))
    if unit != "STEP":
        raise NotHere(f"it counts in units of {unit}, and previews here count steps; set previews.every")
    section.put("previews.every", whole(value))
    return None


def destination(value: Any, section: Section) -> None:
    """The name of the file without its ending."""
    section.put("training.name", file_name(last_name(value).removesuffix(".safetensors")))
