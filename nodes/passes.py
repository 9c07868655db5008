"""Token Routing and Scheduled Sampling: how the model runs in a training step, and on what."""

from __future__ import annotations

from comfy_api.latest import io

from ..flux2_train.settings.rollout import RolloutSettings
from ..flux2_train.settings.routing import RoutingSettings
from . import fields
from .options import Options
from .types import OPTIONS, FluxOptions


class TokenRouting(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Flux2TokenRouting",
            display_name="Token Routing",
            category=OPTIONS,
            description="Lets a part of each image's tokens skip blocks while training (TREAD): steps take less time "
            "and memory. Previews, validation and sampling never skip any.",
            search_aliases=["tread", "faster training", "token dropping", "speed"],
            inputs=fields.inputs(RoutingSettings),
            outputs=[FluxOptions.Output(display_name="routing")],
        )

    @classmethod
    def execute(cls, **widgets) -> io.NodeOutput:
        return io.NodeOutput(Options("Token Routing", {"routing": RoutingSettings(**widgets)}))


class ScheduledSampling(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Flux2ScheduledSampling",
            display_name="Scheduled Sampling",
            category=OPTIONS,
            description="Trains on what the model itself makes in the last sampling steps, not only on images with "
            "noise: a LoRA that is sampled in few steps drifts less. Steps take longer.",
            search_aliases=["rollout", "reflexflow", "exposure bias", "self forcing"],
            inputs=fields.inputs(RolloutSettings),
            outputs=[FluxOptions.Output(display_name="rollout")],
        )

    @classmethod
    def execute(cls, **widgets) -> io.NodeOutput:
        return io.NodeOutput(Options("Scheduled Sampling", {"rollout": RolloutSettings(**widgets)}))
