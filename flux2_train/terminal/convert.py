"""``convert LORA OUTPUT``: a LoRA file in another program's format."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..settings.base import choices
from ..settings.saving import SaveSettings
from .options import command, find_file, start

DESCRIPTION = """\
Write a LoRA file in another format: comfyui (which diffusers and ai-toolkit read too), diffusers, kohya or peft.

  python -m flux2_train convert zbot.safetensors zbot_kohya.safetensors --format kohya
  python -m flux2_train convert dora.safetensors plain.safetensors --plain-rank 32 --base klein.safetensors
"""


def add(commands) -> None:
    """Add the command to the parser."""
    made = command(commands, "convert", run, "write a LoRA in another format", description=DESCRIPTION)
    made.add_argument("lora", metavar="LORA", help="a name in ComfyUI's loras folder, or a path")
    made.add_argument("output", type=Path, metavar="OUTPUT", help="the file to write; a folder for format peft")
    made.add_argument(
        "--format",
        choices=choices(SaveSettings, "format"),
        default="comfyui",
        help="what reads it (default: %(default)s)",
    )
    made.add_argument(
        "--precision",
        choices=choices(SaveSettings, "precision"),
        default="bf16",
        help="of its weights (default: %(default)s)",
    )
    made.add_argument(
        "--plain-rank",
        type=int,
        default=0,
        metavar="RANK",
        help="write plain LoRA of at most this rank, with its error",
    )
    made.add_argument("--base", default="", metavar="MODEL", help="the transformer's file, where DoRA changes its form")
    made.add_argument("--allow-unmatched", action="store_true", help="leave keys out that mean nothing in FLUX.2")


def run(arguments: argparse.Namespace) -> None:
    """Convert, and print what that did."""
    start(arguments)
    from ..host.lora.merge import convert

    base = find_file("diffusion_models", arguments.base) if arguments.base else None
    print(
        convert(
            find_file("loras", arguments.lora), arguments.output, arguments.format, arguments.precision,
            arguments.plain_rank, base, arguments.allow_unmatched,
        )
    )  # fmt: skip
