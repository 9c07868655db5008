"""AI Toolkit: how single values become ours."""

from __future__ import annotations

from typing import Any

from ..common import add_prompts
from ..convert import flag, lines, number, oneof, text, whole
from ..draft import NotHere, Section
from ..rules import Differs

ARCHS = {"flux2": "dev", "flux2_klein_4b": "klein-4b", "flux2_klein_9b": "klein-9b"}
QTYPES = {"qfloat8": "fp8 (scaled)", "float8": "fp8 (scaled)", "convrot8": "int8", "int8": "int8", "nvfp4": "nvfp4",
          "convrotcomfyw4a4": "int4", "convrot4": "nvfp4"}  # fmt: skip
NO_QTYPE = "no precision here has that few bits; the model is loaded as its file is"
OPTIMIZERS = {"adamw": "adamw", "adam": "adamw", "adamw8bit": "adamw8bit", "adam8bit": "adamw8bit",
              "adam8": "adamw8bit", "adamw8": "adamw8bit", "adafactor": "adafactor", "prodigy": "prodigy",
              "prodigyopt": "prodigy", "prodigy8bit": "prodigy", "lion": "lion", "lion8bit": "lion"}  # fmt: skip
LISTS = {"one_step": [1.0], "two_step": [1.0, 0.501], "four_step": [1.0, 0.75, 0.5, 0.25],
         "eight_step": [1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]}  # fmt: skip
TIMES = {"sigmoid": ("sigmoid", "none"), "linear": ("uniform", "none"), "weighted": ("weighted", "none"),
         "shift": ("uniform", "linear"), "flux_shift": ("uniform", "linear"),
         "lumina2_shift": ("uniform", "linear")}  # fmt: skip
DIFFUSERS_ONLY = "for models other than FLUX.2"
NOISE = "noise is added as it is drawn"
SEE_PROMPT = "of the prompt beside it"


def nothing(value: Any, section: Section) -> None:
    """The key is read together with another."""


def network(value: Any, section: Section) -> str | None:
    """LoRA, DoRA or LoKr."""
    kinds = {"lora": "lora", "dora": "lora", "lokr": "lokr"}
    section.put("training.adapter.kind", oneof(kinds, "this kind of network is not here; it is LoRA")(value))
    if str(value).lower() == "dora":
        section.put("training.adapter.dora", True)
    if str(value).lower() == "lokr" and flag(section.get("network.lokr_full_rank", True)):
        section.put("training.rank", 1024)
        return Differs(
            "lokr_full_rank: the larger matrix is whole where the rank is at least half of its longer side; 1024 is "
            "the largest rank here"
        )
    return None


def rank(value: Any, section: Section) -> str | None:
    """The rank, unless LoKr is whole."""
    if section.get("network.type") == "lokr" and flag(section.get("network.lokr_full_rank", True)):
        return "lokr_full_rank counts"
    section.put("training.rank", whole(value))
    return None


def alpha(value: Any, section: Section) -> None:
    """It is forced to the rank there."""
    section.put("training.alpha", 0.0)


def patterns(place: str):
    """Parts of names as patterns of names."""

    def take(value: Any, section: Section) -> str | None:
        parts = [str(part).removeprefix("transformer.") for part in (value if isinstance(value, list) else [value])]
        section.put(place, ", ".join(f"*{part}*" for part in parts))
        return "a part of a name becomes a pattern" if parts else None

    return take


def optimizer(value: Any, section: Section) -> str | None:
    """The optimizer; every Adam there adds 1e-6 to its divisor, and Prodigy's rate is set to 1."""
    name = str(value).lower()
    ours = oneof(OPTIMIZERS, "this optimizer is not here; adamw8bit or prodigy come nearest")(name)
    section.put("training.optimizer.optimizer", ours)
    if ours.startswith("adamw"):
        section.put("training.optimizer.eps", 1e-6)
    if ours == "prodigy" and number(section.get("train.lr", 1e-6)) < 0.1:
        section.put("training.learning_rate", 1.0)
        return "it raises rates below 0.1 to 1"
    return "weight decay beside the gradient, as in AdamW" if name in ("adam", "adam8bit") else None


def rate(value: Any, section: Section) -> str | None:
    """The learning rate, unless the optimizer has set it to 1."""
    if str(section.get("train.optimizer", "")).startswith("prodigy") and number(value) < 0.1:
        return "see optimizer"
    section.put("training.learning_rate", number(value))
    return None


def slider(value: Any, section: Section) -> str | None:
    """The prompts of a concept slider, which Cache Embeds encodes."""
    section.put("training.slider.positive", str(value))
    if section.get("type") != "concept_slider":
        return "the kind of process is no slider"
    section.put("training.slider.slider", "prompts")
    names = ("positive_prompt", "negative_prompt", "target_class")
    section.put("embeds.prompts", "\n".join(str(section.get(f"slider.{name}", "")) for name in names))
    return None


def schedule(value: Any, section: Section) -> None:
    """The schedule under its name here."""
    names = {"constant": "constant", "constant_with_warmup": "constant", "linear": "linear", "cosine": "cosine",
             "cosine_with_restarts": "cosine with restarts", "polynomial": "polynomial"}  # fmt: skip
    section.put("training.optimizer.schedule", oneof(names, "this schedule is not here; it stays constant")(value))
    if value == "constant_with_warmup" and section.get("train.lr_scheduler_params.num_warmup_steps") is None:
        section.put("training.optimizer.warmup", 1000.0)


def times(value: Any, section: Section) -> None:
    """Distribution and shift: sigmoid and linear are not shifted there."""
    if str(value) in LISTS:
        section.put("training.timesteps.values", LISTS[str(value)])
        section.put("training.timesteps.distribution", "list")
        return
    if str(value) not in TIMES:
        raise NotHere("these times are not here; sigmoid is drawn")
    distribution, shift = TIMES[str(value)]
    section.put("training.timesteps.distribution", distribution)
    section.put("training.timesteps.shift", shift)


def limit(place: str):
    """An index into 1000 times, of which 0 is pure noise."""

    def take(value: Any, section: Section) -> str | None:
        if whole(value) in (0, 999, 1000):
            return "no limit"
        section.put(place, round(1 - whole(value) / 1000, 4))
        return None

    return take


def ema(value: Any, section: Section) -> None:
    """EMA is on where its decay is above 0."""
    on = flag(section.get("train.ema_config.use_ema", False))
    section.put("training.ema.ema_decay", number(section.get("train.ema_config.ema_decay", 0.999)) if on else 0.0)


def preserve(kind: str, multiplier: str):
    """Preservation of that kind in every step, as strong as the multiplier."""

    def take(value: Any, section: Section) -> str | None:
        if not flag(value):
            return "off"
        section.put("training.preservation", number(section.get(multiplier, 1.0)))
        section.put("training.preservation_options.kind", kind)
        section.put("training.preservation_options.every", 1)
        return None

    return take


def guided(value: Any, section: Section) -> str | None:
    """Contrastive guidance."""
    if not flag(value):
        return "off"
    section.put("training.guidance.contrastive_guidance", number(section.get("train.guidance_loss_target", 3.0)))
    if section.get("train.guidance_loss_schedule") == "sigma":
        section.put("training.guidance.contrastive_schedule", "sigma")
    if flag(section.get("train.do_guidance_loss_cfg_zero", False)):
        section.put("training.guidance.contrastive_project", True)
    return None


def differential(value: Any, section: Section) -> str | None:
    """Differential guidance, which there acts only beside contrastive guidance."""
    if not flag(value):
        return "off"
    section.put("training.differential_guidance", number(section.get("train.differential_guidance_scale", 3.0)))
    if not flag(section.get("train.do_guidance_loss", False)):
        return Differs("its version 0.12.26 acts on it only together with do_guidance_loss; here it acts")
    return None


def when(key: str, place: str, default: float):
    """A number that counts where a switch is on."""

    def take(value: Any, section: Section) -> str | None:
        if not flag(value):
            return "off"
        section.put(place, number(section.get(key, default)))
        return None

    return take


def quantised(place: str, qtype: str):
    """A precision where quantising is on."""

    def take(value: Any, section: Section) -> None:
        name = str(section.get(qtype, "qfloat8"))
        if "|" in name:
            raise NotHere("accuracy recovery adapters are not here; the model is loaded as its file is")
        section.put(place, oneof(QTYPES, NO_QTYPE)(name) if flag(value) else "bf16")

    return take


def offloading(value: Any, section: Section) -> None:
    """Streaming, as a share of the blocks."""
    if not flag(value):
        section.put("training.offload", "auto")
        return
    percent = number(section.get("model.layer_offloading_transformer_percent", 1.0)) * 100
    section.put("training.memory.offload_percent", percent)


def prompt(value: Any, section: Section) -> str | None:
    """One entry of ``samples``, with its references and strength."""
    place = section.key.removesuffix(".prompt")
    images = [section.get(f"{place}.{name}") for name in ("ctrl_img", "ctrl_img_1", "ctrl_img_2", "ctrl_img_3")]
    strength = section.get(f"{place}.network_multiplier")
    entry: dict[str, Any] = {"text": text(value), "references": [image for image in images if image]}
    if strength is not None:
        entry["strength"] = number(strength)
    for name, ours in (("width", "width"), ("height", "height"), ("seed", "seed"), ("sample_steps", "steps")):
        own = section.get(f"{place}.{name}")
        if own is not None:
            entry[ours] = whole(own) if ours in ("seed", "steps") else max(1, round(number(own) / 16)) * 16
    add_prompts(section, [entry])
    return "[trigger] is not filled in there" if "[trigger]" in str(value) else None


def all_prompts(value: Any, section: Section) -> None:
    """The older list of texts."""
    add_prompts(section, lines(value))
