"""``convert LORA OUTPUT``: a LoRA file in another program's format."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..settings.saving import SaveSettings
from .options import add_flags, command, find_file, start

DESCRIPTION = """\
Write a LoRA file in another format: comfyui (which diffusers and ai-toolkit read too), diffusers, kohya or peft.

  python -m flux2_train convert zbot.safetensors zbot_kohya.safetensors --format kohya
  python -m flux2_train convert dora.safetensors plain.safetensors --plain-rank 32 --base klein.safetensors
"""


def add(commands) -> None:
    """Add the command to the parser."""
    parser = command(commands, "convert", run, "write a LoRA in another format", description=DESCRIPTION)
    parser.add_argument("lora", metavar="LORA", help="a name in ComfyUI's loras folder, or a path")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="the file to write; a folder for format peft")
    add_flags(parser, SaveSettings, "format", "precision", "plain_rank", plain_rank={"metavar": "RANK"})
    parser.add_argument(
        "--base", default="", metavar="MODEL", help="the transformer's file, which is needed to convert a DoRA"
    )
    parser.add_argument("--allow-unmatched", action="store_true", help="leave out keys that mean nothing in FLUX.2")


def run(arguments: argparse.Namespace) -> None:
    """Convert, and print what was done."""
    start(arguments)
    from ..host.lora.merge import convert

    base = find_file("diffusion_models", arguments.base) if arguments.base else None
    print(
        convert(
            find_file("loras", arguments.lora), arguments.output, arguments.format, arguments.precision,
            arguments.plain_rank, base, arguments.allow_unmatched,
        )
    )  # fmt: skip
