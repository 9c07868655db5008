"""``convert LORA OUTPUT``: a LoRA file in another program's format, or the LoRA of a run's checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..runs.folder import RunFolder
from ..settings import job
from ..settings.saving import SaveSettings
from .options import UsageError, add_flags, command, find_file, run_of, start

DESCRIPTION = """\
Write a LoRA file in another format: comfyui (which diffusers and ai-toolkit read too), diffusers, kohya or peft.
RUN:STEP writes the LoRA that a run would have saved at that checkpoint, RUN:last at its newest one.

  python -m flux2_train convert zbot.safetensors zbot_kohya.safetensors --format kohya
  python -m flux2_train convert dora.safetensors plain.safetensors --plain-rank 32 --base klein.safetensors
  python -m flux2_train convert zbot:500 zbot_step500.safetensors
"""
LAST = "last"


def add(commands) -> None:
    """Add the command to the parser."""
    parser = command(commands, "convert", run, "write a LoRA in another format", description=DESCRIPTION)
    parser.add_argument("lora", metavar="LORA", help="a name in ComfyUI's loras folder, a path, or RUN:STEP")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="the file to write; a folder for format peft")
    add_flags(parser, SaveSettings, "format", "precision", "plain_rank", plain_rank={"metavar": "RANK"})
    parser.add_argument(
        "--base", default="", metavar="MODEL", help="the transformer's file, which is needed to convert a DoRA"
    )
    parser.add_argument("--allow-unmatched", action="store_true", help="leave out keys that mean nothing in FLUX.2")


def run(arguments: argparse.Namespace) -> None:
    """Convert, and print what was done."""
    run_name, colon, step = arguments.lora.rpartition(":")
    if colon and (step == LAST or step.isdecimal()):
        arguments.run_folder = run_name
        print(_of_checkpoint(arguments, run_of(arguments), step))
        return
    start(arguments)
    from ..host.lora.merge import convert

    base = find_file("diffusion_models", arguments.base) if arguments.base else None
    print(
        convert(
            find_file("loras", arguments.lora), arguments.output, arguments.format, arguments.precision,
            arguments.plain_rank, base, arguments.allow_unmatched,
        )
    )  # fmt: skip


def _of_checkpoint(arguments: argparse.Namespace, folder: RunFolder, step: str) -> str:
    """Write the LoRA of a checkpoint; DoRA takes its norms from the model that the run names."""
    start(arguments)
    import torch

    from ..runs.checkpoint_lora import write_lora
    from ..runs.checkpoints import paths, step_of
    from ..runs.precision import parts_of

    there = {str(step_of(path)): path for path in paths(folder.checkpoints)}
    chosen = next(reversed(there), "") if step == LAST else step
    if chosen not in there:
        raise UsageError(f"The run {folder.name} has no checkpoint {step}; there are {', '.join(there) or 'none'}.")
    save = SaveSettings(arguments.format, arguments.precision, arguments.plain_rank)
    with torch.inference_mode():
        model = parts_of(job.load(folder.job).model).load_model()
        return write_lora(model, there[chosen], arguments.output, save)
