"""SimpleTuner: how single values become ours."""

from __future__ import annotations

from typing import Any

from ..common import counted, put_class
from ..convert import betas as both_betas
from ..convert import flag, number, numbers, oneof, whole
from ..draft import NotHere, Section
from ..rules import Differs

OPTIMIZERS = {
    "adamw_bf16": "adamw", "torch-adamw": "adamw", "optimi-adamw": "adamw", "torch-adam": "adamw",
    "bnb-adamw8bit": "adamw8bit", "bnb-adamw8bit-paged": "adamw8bit", "ao-adamw8bit": "adamw8bit",
    "adamw_schedulefree": "schedulefree", "adamw_schedulefree+no_kahan": "schedulefree", "prodigy": "prodigy",
    "optimi-lion": "lion", "bnb-lion": "lion", "torch-adafactor": "adafactor",
}  # fmt: skip
CLASSES = {
    "optimi-stableadamw": "pytorch_optimizer.StableAdamW", "muon": "torch.optim.Muon",
    **{f"torch-{name.lower()}": f"torch.optim.{name}"
       for name in ("SGD", "RAdam", "NAdam", "RMSprop", "Adagrad", "Adadelta", "Adamax", "ASGD")},
}  # fmt: skip
SCHEDULES = {
    "constant": "constant", "constant_with_warmup": "constant", "linear": "linear", "cosine": "cosine",
    "cosine_with_restarts": "cosine with restarts", "polynomial": "polynomial",
}  # fmt: skip
SHIFTS = "training.timesteps.shift, shift_factor"
ONE = "its code sets guidance to 1 for FLUX.2, whatever the file says"
OWN = "ComfyUI looks after this itself"
CARDS = "how its processes and cards are set up"
steps, epochs = counted("max_train_steps", "num_train_epochs")


def precision(value: Any, section: Section) -> None:
    """``int8-quanto``, ``fp8-torchao``, ``nf4-bnb``, ``no_change``: the same bits, in ComfyUI's own formats."""
    name = str(value).lower()
    known = {"no_change": "bf16", "int8": "int8", "uint8": "int8", "fp8": "fp8 (scaled)", "nf4": "nvfp4",
             "int4": "int4", "uint4": "int4", "fp16": "fp16"}  # fmt: skip
    section.put("model.precision", _precision(name, known))


def _precision(name: str, known: dict[str, str]) -> str:
    found = known.get(name, known.get(name.partition("-")[0]))
    if found is None or "fp8-int4" in name or "int8dq-int4" in name:
        raise NotHere("no precision here stores weights in so many bits; the model is loaded as its file is")
    return found


def encoder_precision(value: Any, section: Section) -> None:
    """The same for the text encoder."""
    known = {"no_change": "as in file", "int8": "int8", "fp8": "fp8 (scaled)", "nf4": "nvfp4", "int4": "int4"}
    section.put("model.text_encoder_precision", _precision(str(value).lower(), known))


def optimizer(value: Any, section: Section) -> str | None:
    """An optimizer of the same kind; AdamW in bf16 with random rounding becomes AdamW on fp32 weights."""
    name = str(value).lower()
    if name in CLASSES:
        return put_class(CLASSES[name], section)
    if name not in OPTIMIZERS:
        raise NotHere(
            f"this optimizer is not here; the nearest of {', '.join(sorted(set(OPTIMIZERS.values())))} is yours"
        )
    section.put("training.optimizer.optimizer", OPTIMIZERS[name])
    if name in ("adamw_bf16", "optimi-adamw"):
        section.put("training.optimizer.eps", 1e-6)
        return "the adapters' weights are fp32 here, so that random rounding is not needed"
    return None


def clip(value: Any, section: Section) -> str:
    """Their default method clamps each number of the gradients, which hardly ever acts."""
    if str(section.get("grad_clip_method", "value")) == "norm":
        section.put("training.optimizer.max_grad_norm", number(value))
        return "the length of all gradients together"
    section.put("training.optimizer.max_grad_norm", 0.0)
    return "it clamps each single number at that height, which hardly ever acts: no clipping here"


def schedule(value: Any, section: Section) -> str | None:
    """The schedule, and where it ends."""
    section.put("training.optimizer.schedule", oneof(SCHEDULES, "this schedule is not here; it stays constant")(value))
    if value == "cosine":
        return Differs("theirs goes on oscillating up and down, ours falls once")
    if value == "polynomial":
        rate = number(section.get("learning_rate", 4e-7))
        section.put("training.optimizer.end", min(1.0, number(section.get("lr_end", 4e-7)) / rate))
        section.put("training.optimizer.power", number(section.get("lr_power", 0.8)))
    return None


def shift(value: Any, section: Section) -> str | None:
    """A constant shift, unless it goes by image size; 0 is none."""
    if flag(section.get("flow_schedule_auto_shift", False)):
        section.put("training.timesteps.shift", "linear")
        return "flow_schedule_auto_shift goes by image size"
    if number(value) == 0:
        section.put("training.timesteps.shift", "none")
    else:
        section.put("training.timesteps.shift", "constant")
        section.put("training.timesteps.shift_factor", number(value))
    return None


def listed(value: Any, section: Section) -> None:
    """A list of times, drawn at random or one after the other."""
    mode = str(section.get("flow_timesteps_mode", "fixed-list"))
    section.put("training.timesteps.values", numbers(value))
    section.put("training.timesteps.distribution", "round robin" if mode == "round-robin" else "list")


def distribution(name: str):
    """A switch that turns a distribution on."""

    def take(value: Any, section: Section) -> str | None:
        if flag(value):
            section.put("training.timesteps.distribution", name)
            return None
        return "off: sigmoid"

    return take


def targets(value: Any, section: Section) -> str:
    """Its documents name four sets of layers, and its code always trains the same five Linears."""
    section.put("training.targets", oneof({n: n for n in ("all", "attention", "mlp", "tiny")}, "all is trained")(value))
    return Differs(
        "as its FLUX.2 page says; its code ignores the key and trains 'double_blocks.*.img_attn.*, "
        "single_blocks.*.linear1' only (put that into adapter.include for the same layers)"
    )


def lora_type(value: Any, section: Section) -> str | None:
    """A plain LoRA, or whatever the LyCORIS file says."""
    if str(value) == "lycoris":
        return "lycoris_config says which"
    section.put("training.adapter.kind", oneof({"standard": "lora", "lora": "lora"}, "it is LoRA here")(value))
    return None


def ema(value: Any, section: Section) -> str | None:
    """EMA is on where its decay is above 0."""
    if not flag(value):
        section.put("training.ema.ema_decay", 0.0)
        return "0 is off"
    section.put("training.ema.ema_decay", number(section.get("ema_decay", 0.995)))
    return None


def optimizer_options(value: Any, section: Section) -> str | None:
    """``name=value`` pairs with commas: weight decay, betas and eps are known here."""
    pairs = dict(part.split("=", 1) for part in str(value).replace("--", "").split(",") if "=" in part)
    left = sorted(pairs.keys() - {"weight_decay", "eps"})
    if "weight_decay" in pairs:
        section.put("training.optimizer.weight_decay", number(pairs["weight_decay"]))
    if "eps" in pairs:
        section.put("training.optimizer.eps", number(pairs["eps"]))
    return Differs(f"{', '.join(left)} is not taken over") if left else None


def betas(value: Any, section: Section) -> None:
    """Both betas from two keys."""
    both = both_betas(section.get("optimizer_beta1", 0.9), section.get("optimizer_beta2", 0.999))
    section.put("training.optimizer.betas", both)


def epoch_checkpoints(value: Any, section: Section) -> None:
    """Checkpoints every few epochs."""
    section.put("training.checkpoints.every_epochs", whole(value))
