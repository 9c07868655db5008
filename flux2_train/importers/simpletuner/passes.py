"""SimpleTuner's TREAD and scheduled sampling, as Token Routing and Scheduled Sampling here."""

from __future__ import annotations

import re
from typing import Any

from ..convert import flag, number, whole
from ..draft import Section
from ..rules import Differs, each, missing, needless, special

THOUSANDTHS = 999  # its steps: from one of 1000 times to the next
KEY = "scheduled_sampling_"


def _route(value: Any, section: Section) -> str:
    """A route of ``tread_config``, whose three values lie beside each other."""
    at = int(re.search(r"\[(\d+)\]", section.key).group(1))
    start, end = (whole(section.get(f"tread_config.routes[{at}].{side}_layer_idx", other))
                  for side, other in (("start", 0), ("end", -1)))  # fmt: skip
    kept = 1 - number(value)
    if at == 0:
        section.put("training.routing.selection_ratio", kept)
        section.put("training.routing.start_layer_idx", start)
        section.put("training.routing.end_layer_idx", end)
        section.put("training.routing.until", 100.0)
    else:
        more = section.ours("training.routing.more_routes") or []
        section.put("training.routing.more_routes", [*more, [start, end, kept]])
    return (
        "there it is in effect the fraction of tokens left out, though its FLUX.2 page calls it the fraction kept; "
        "here it is the fraction kept"
    )


def _offset(value: Any, section: Section) -> str | None:
    offset = whole(value)
    if not offset:
        return "0 is off"
    section.put("training.rollout.max_offset", offset)
    section.put("training.rollout.inference_steps", THOUSANDTHS)
    section.put("training.rollout.schedule", "uniform")
    if section.get(f"{KEY}reflexflow") is None:
        section.put("training.rollout.reflexflow", True)  # it turns it on by itself
    return Differs(
        "its steps are thousandths of the way, which change little; steps of your sampling do more: set "
        "rollout.inference_steps to 20 and max_offset to 1"
    )


def _probability(value: Any, section: Section) -> str | None:
    if not whole(section.get(f"{KEY}max_step_offset", 0)):
        return "off, because max_step_offset is 0"
    ramp = whole(section.get(f"{KEY}ramp_steps", 0))
    section.put("training.rollout.probability", number(section.get(f"{KEY}prob_end", 0.5)) if ramp else number(value))
    return "prob_end counts, because ramp_steps is set" if ramp else None


def _plain(place: str, convert: Any):
    def take(value: Any, section: Section) -> None:
        section.put(f"training.rollout.{place}", convert(value))

    return take


PASSES = (
    special("tread_config.routes[].selection_ratio", "training.routing", "", _route),
    *each(special, "tread_config.routes[].start_layer_idx tread_config.routes[].end_layer_idx", "training.routing",
        "see the selection_ratio of its route", lambda value, section: None),
    missing("tread_config", "no key of a route"),
    special(f"{KEY}max_step_offset", "training.rollout", "", _offset),
    special(f"{KEY}probability", "training.rollout.probability", "", _probability),
    special(f"{KEY}prob_end", "training.rollout.probability", "see probability", lambda value, section: None),
    special(f"{KEY}ramp_steps", "training.rollout.ramp_steps", "", _plain("ramp_steps", whole)),
    special(f"{KEY}start_step", "training.rollout.start_step", "", _plain("start_step", whole)),
    special(f"{KEY}reflexflow", "training.rollout.reflexflow", "", _plain("reflexflow", flag)),
    special(f"{KEY}reflexflow_alpha", "training.rollout.reflex_weight",
        "here it is a mean over the image, there a sum, with which it does next to nothing",
        _plain("reflex_weight", number)),
    special(f"{KEY}reflexflow_beta1", "training.rollout.reflex_drift", "only for sampled inputs here",
        _plain("reflex_drift", number)),
    missing(f"{KEY}reflexflow_beta2", "the loss itself has no factor", off=(None, 1, 1.0)),
    missing(f"{KEY}prob_start", "the ramp starts at 0", off=(None, 0, 0.0)),
    missing(f"{KEY}ramp_shape", "the ramp is linear", off=(None, "linear")),
    missing(f"{KEY}strategy", "offsets are drawn uniformly", off=(None, "uniform")),
    *each(needless, f"{KEY}sampler {KEY}order", "plain Euler there whatever is chosen, and here by default"),
)  # fmt: skip
