"""``merge MODEL OUTPUT``: a transformer file with LoRAs merged into it."""

from __future__ import annotations

import argparse
from pathlib import Path

from .options import add_loras, command, find_file, loras_of, start

DESCRIPTION = """\
Write a FLUX.2 transformer with LoRAs merged into it, layer by layer, so that memory for a few layers is enough.

  python -m flux2_train merge flux-2-klein-base-4b.safetensors zbot-klein.safetensors --lora zbot strength=0.8
"""
PRECISIONS = ("source", "bf16", "fp16", "fp32", "fp8")


def add(commands) -> None:
    """Add the command to the parser."""
    parser = command(commands, "merge", run, "merge LoRAs into a transformer file", description=DESCRIPTION)
    parser.add_argument("model", metavar="MODEL", help="a name in ComfyUI's diffusion_models folder, or a path")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="the file to write; nothing is overwritten")
    add_loras(parser, ("strength",), required=True)
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="source", help="how the weights are stored (default: as they are)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Merge, and print what was done."""
    loras = loras_of(arguments)
    start(arguments)
    from ..host.lora.merge import merge

    strengths = [(find_file("loras", file), settings["strength"]) for file, settings in loras]
    print(merge(find_file("diffusion_models", arguments.model), strengths, arguments.output, arguments.precision))
