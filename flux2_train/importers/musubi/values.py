"""musubi-tuner: how single options become our settings."""

from __future__ import annotations

import math
import re
from typing import Any

from ...flavours import FLAVOURS
from ...geometry import MULTIPLE
from ...settings.optimizer import LIBRARIES
from ...settings.previews import FLAGS
from .. import reading
from ..common import add_prompts, flavour_of, put_class
from ..convert import betas, flag, number, oneof, whole
from ..draft import NotHere, Section
from ..rules import Differs

OPTIMIZERS = {
    "adamw": "adamw", "adamw8bit": "adamw8bit", "adafactor": "adafactor", "prodigy": "prodigy", "lion": "lion",
    "lion8bit": "lion", "adamwschedulefree": "schedulefree", "schedulefree": "schedulefree",
}  # fmt: skip
SCHEDULES = {"constant": "constant", "constant_with_warmup": "constant", "linear": "linear", "cosine": "cosine",
             "cosine_with_restarts": "cosine with restarts", "polynomial": "polynomial", "rex": "rex",
             "cosine_with_min_lr": "cosine"}  # fmt: skip
MODULES = {"lora_flux_2": "lora", "lora": "lora", "loha": "loha", "lokr": "lokr"}
ALGORITHMS = {"lora": "lora", "locon": "lora", "loha": "loha", "lokr": "lokr"}
PLACE = "training.timesteps"


def nothing(value: Any, section: Section) -> None:
    """The option is read together with another."""


def version(value: Any, section: Section) -> str | None:
    """dev, klein-4b, klein-base-9b and the like: flavour and variant."""
    section.put("model.flavour", flavour_of("flux.2-dev" if value == "dev" else value))
    if "klein" in str(value):
        section.put("model.variant", "base" if "base" in str(value) else "distilled")
    return None


def fp8(value: Any, section: Section) -> None:
    """With fp8_scaled a scale for each part of a matrix, without it a plain cast."""
    if flag(value):
        scaled = flag(section.get("fp8_scaled", False))
        section.put("model.precision", "fp8 (scaled)" if scaled else "fp8 (e4m3)")


def network(value: Any, section: Section) -> str | None:
    """The module's last name is the kind; LyCORIS says it among its arguments. No module is imported."""
    name = str(value).rpartition(".")[2].lower()
    if name == "kohya":
        algorithm = pairs(section.get("network_args", [])).get("algo", "lora")
        section.put("training.adapter.kind", oneof(ALGORITHMS, f"LyCORIS's {algorithm} is not here")(algorithm))
        return "LyCORIS"
    section.put("training.adapter.kind", oneof(MODULES, "this network is not here; it is LoRA")(name))
    return None


def pairs(value: Any) -> dict[str, str]:
    """``name=value`` words as a dict."""
    words = value if isinstance(value, list) else [value]
    return {name.strip(): each for name, _, each in (str(word).partition("=") for word in words)}


def network_args(value: Any, section: Section) -> str | None:
    """LoRA+, patterns and LoKr's factor."""
    given = pairs(value)
    if "loraplus_lr_ratio" in given:
        section.put("training.adapter.lora_plus", number(given["loraplus_lr_ratio"]))
    if "factor" in given and _is_lokr(section, given):
        section.put("training.adapter.lokr_factor", whole(given["factor"]))
    for theirs, ours in (("exclude_patterns", "exclude"), ("include_patterns", "include")):
        if theirs in given:
            section.put(f"training.adapter.{ours}", globs(given[theirs]))
    left = sorted(
        given.keys() - {"loraplus_lr_ratio", "factor", "exclude_patterns", "include_patterns", "algo", "verbose"}
    )
    return Differs(f"{', '.join(left)} is not taken over") if left else None


def _is_lokr(section: Section, given: dict[str, str]) -> bool:
    return given.get("algo", str(section.get("network_module", "")).rpartition(".")[2]).lower() == "lokr"


def globs(text: str) -> str:
    """Regular expressions in a Python list as patterns with ``*``. Raises NotHere for more than ``.*`` and dots."""
    found = re.findall(r"r?(['\"])(.*?)\1", text)
    patterns = [each.replace("\\.", ".").replace(".*", "*") for _, each in found]
    if not patterns or any(re.search(r"[\\()|\[\]+?{}^$]", each) for each in patterns):
        raise NotHere("these are regular expressions; write patterns with * into adapter.include and exclude")
    return ", ".join(patterns)


def optimizer(value: Any, section: Section) -> str | None:
    """By its last name, else by its class if the library may be used here. Nothing is imported while this is read."""
    name = str(value).rpartition(".")[2].lower()
    if name not in OPTIMIZERS and str(value).rpartition(".")[0] in LIBRARIES:
        return put_class(str(value), section)
    return section.put(
        "training.optimizer.optimizer", oneof(OPTIMIZERS, "this optimizer is not here; it is adamw")(name)
    )


def optimizer_args(value: Any, section: Section) -> str | None:
    """Weight decay, betas and eps."""
    given = pairs(value)
    if "weight_decay" in given:
        section.put("training.optimizer.weight_decay", number(given["weight_decay"]))
    if "betas" in given:
        section.put("training.optimizer.betas", betas(*re.findall(r"[\d.eE+-]+", given["betas"])))
    if "eps" in given:
        section.put("training.optimizer.eps", number(given["eps"]))
    left = sorted(given.keys() - {"weight_decay", "betas", "eps"})
    if left and section.ours("training.optimizer.optimizer") == "other":
        section.put("training.optimizer.other_arguments", ", ".join(f"{name}={given[name]}" for name in left))
        return None
    return Differs(f"{', '.join(left)} is not taken over") if left else None


def warmup(value: Any, section: Section) -> str | None:
    """Steps, a part of all steps, or per cent of them."""
    text = str(value).strip()
    part = number(text.rstrip("%")) / 100 if text.endswith("%") else number(text)
    section.put("training.optimizer.warmup", part)
    return "a part of all steps" if 0 < part < 1 else None


def times(value: Any, section: Section) -> str | None:
    """Distribution and shift. ``sigma`` draws from a table as weighting_scheme says."""
    name = str(value)
    words = None if name == "sigma" else "its times are 0.001 higher than drawn; here they are as drawn"
    if name == "sigma":
        sigma(section)
    elif name in ("flux2_shift", "sigmoid", "shift"):
        section.put(f"{PLACE}.distribution", "sigmoid")
        section.put(f"{PLACE}.sigmoid_scale", number(section.get("sigmoid_scale", 1.0)))
        constant_shift(section) if name == "shift" else shift(section, "linear" if name == "flux2_shift" else "none")
    elif name == "uniform":
        section.put(f"{PLACE}.distribution", "uniform")
        shift(section, "none")
    elif name == "logsnr":
        section.put(f"{PLACE}.distribution", "sigmoid")
        section.put(f"{PLACE}.sigmoid_mean", -number(section.get("logit_mean", 0.0)) / 2)
        section.put(f"{PLACE}.sigmoid_std", number(section.get("logit_std", 1.0)) / 2)
        shift(section, "none")
        words = f"t = sigmoid(-logsnr / 2); {words}"
    else:
        raise NotHere("made for other models; flux2_shift is sigmoid with a linear shift")
    return words


def shift(section: Section, name: str) -> None:
    """Set the shift."""
    section.put(f"{PLACE}.shift", name)


def constant_shift(section: Section) -> None:
    """A constant shift by discrete_flow_shift; 1 is none."""
    factor = number(section.get("discrete_flow_shift", 1.0))
    shift(section, "none" if factor == 1 else "constant")
    if factor != 1:
        section.put(f"{PLACE}.shift_factor", factor)


def sigma(section: Section) -> None:
    """Times from a table, shifted by discrete_flow_shift."""
    scheme = str(section.get("weighting_scheme", "none"))
    distribution = {"logit_normal": "sigmoid", "mode": "mode"}.get(scheme, "uniform")
    section.put(f"{PLACE}.distribution", distribution)
    if distribution == "sigmoid":
        section.put(f"{PLACE}.sigmoid_mean", number(section.get("logit_mean", 0.0)))
        section.put(f"{PLACE}.sigmoid_std", number(section.get("logit_std", 1.0)))
    if distribution == "mode":
        section.put(f"{PLACE}.mode_scale", number(section.get("mode_scale", 1.29)))
    constant_shift(section)


def weighting(value: Any, section: Section) -> str | None:
    """Two of the schemes weigh the loss, the other two choose times."""
    if str(value) in ("logit_normal", "mode"):
        return "a distribution of times: see timestep_sampling"
    known = {"none": "none", "cosmap": "cosmap", "sigma_sqrt": "sigma_sqrt"}
    section.put(f"{PLACE}.weighting", oneof(known, "not here")(value))
    return None


def swapped(value: Any, section: Section) -> str | None:
    """Its number counts a single block as half: the sum of its own split into double and single blocks."""
    flavour = FLAVOURS[section.draft.flavour or section.ours("model.flavour") or "dev"]
    section.put("training.memory.blocks_to_swap", sum(split(whole(value), *flavour.sizes[1:3])))
    return "there a single block counts as half"


def split(number_: int, doubles: int, singles: int) -> tuple[int, int]:
    """(double, single) blocks that it swaps; two of each kind always stay."""
    ratio = singles / doubles
    double = round(number_ / (1 + ratio / 2))
    single = round(double * ratio)
    while double > doubles - 2 and single + 2 <= singles - 2:
        double, single = double - 1, single + 2
    while single > singles - 2 and double + 1 <= doubles - 2:
        double, single = double + 1, single - 2
    return min(double, doubles), min(single, singles)


def kept(every: str, place: str):
    """How many files lie in the last so many steps or epochs."""

    def take(value: Any, section: Section) -> str:
        step = max(1.0, number(section.get(every, 1)))
        section.put(place, max(1, math.ceil(number(value) / step)))
        return f"those of the last {value}, one each {step:g}"

    return take


def sample_prompts(value: Any, section: Section) -> str:
    """A text with one prompt per line, and options behind ``--``."""
    path = reading.beside(section.draft.path, value)
    if path is None or path.suffix.lower() != ".txt":
        raise NotHere("no .txt file of that name lies beside this one; name it in the node Validation")
    found = [line.strip() for line in reading.read(path).splitlines() if line.strip() and line.lstrip()[0] != "#"]
    add_prompts(section, [_prompt(line) for line in found if _prompt(line)["text"]])
    return (
        Differs("guidance, shift and negative are those of all prompts here; see Validation")
        if any(re.search(r"\s--(?!(?:ci|[whds])\b)", line) for line in found)
        else f"{len(found)} prompts of {path.name}"
    )


def _prompt(line: str) -> dict[str, Any]:
    text, *options = re.split(r"\s--(?=\w)", line)
    images = [each[2:].strip() for each in options if each.startswith("ci")]
    own = {FLAGS[each[0]]: int(each[1:]) for each in options if re.fullmatch(r"[whds]\s+\d{1,20}\s*", each)}
    sides = {name: max(1, round(own[name] / MULTIPLE)) * MULTIPLE for name in ("width", "height") if name in own}
    return {"text": text.strip(), "references": images, **own, **sides}
