"""Training Objective, Concept Slider and Preservation: what is learned, and what must stay as in the base model."""

from __future__ import annotations

from comfy_api.latest import io

from ..flux2_train.settings.objective import GuardSettings, GuidanceSettings, LossSettings, PreservationSettings
from ..flux2_train.settings.slider import SliderSettings
from . import fields
from .options import Options
from .types import OPTIONS, FluxOptions

SECTIONS = {"loss": LossSettings, "guidance": GuidanceSettings, "guard": GuardSettings}


class TrainingObjective(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Flux2TrainingObjective",
            display_name="Training Objective",
            category=OPTIONS,
            description="How wrong a prediction is and towards what it is pulled: loss, guidance, references, alarms.",
            search_aliases=["loss", "huber", "contrastive guidance", "cfg"],
            inputs=[widget for kind in SECTIONS.values() for widget in fields.inputs(kind)],
            outputs=[FluxOptions.Output(display_name="objective")],
        )

    @classmethod
    def execute(cls, **widgets) -> io.NodeOutput:
        sections = {name: fields.taken(kind, widgets) for name, kind in SECTIONS.items()}
        return io.NodeOutput(Options("Training Objective", sections))


class Slider(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Flux2Slider",
            display_name="Concept Slider",
            category=OPTIONS,
            description="Learns a LoRA whose strength moves one property, such as size or age: from two opposite "
            "prompts, or from images and the same images before a change.",
            search_aliases=["slider", "concept sliders", "image sliders", "leco"],
            inputs=fields.inputs(SliderSettings),
            outputs=[FluxOptions.Output(display_name="slider")],
        )

    @classmethod
    def execute(cls, **widgets) -> io.NodeOutput:
        return io.NodeOutput(Options("Concept Slider", {"slider": SliderSettings(**widgets)}))


class Preservation(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Flux2Preservation",
            display_name="Preservation",
            category=OPTIONS,
            description="What stays as the base model has it; LoRA Trainer's 'preservation' says how strongly.",
            search_aliases=["dop", "differential output preservation", "prior", "regularisation"],
            inputs=fields.inputs(PreservationSettings),
            outputs=[FluxOptions.Output(display_name="preservation")],
        )

    @classmethod
    def execute(cls, **widgets) -> io.NodeOutput:
        return io.NodeOutput(Options("Preservation", {"preservation_options": PreservationSettings(**widgets)}))
