"""``resume RUN``: go on with a run that was interrupted, or make a finished one longer."""

from __future__ import annotations

import argparse

from .options import add_run, add_settings, command, read_job, run_of
from .train import in_pack, launched, train_job

DESCRIPTION = """\
Go on with a run from its last checkpoint: after Ctrl-C, Cancel, an error or a power cut, and also after its end, to add
steps. Steps, learning rate, previews and the file's format may be changed:

  python -m flux2_train resume zbot --set steps=3000
  python -m flux2_train resume output/flux2_train/zbot
"""


def add(commands) -> None:
    """Add the command to the parser."""
    parser = command(commands, "resume", run, "go on with an interrupted run", description=DESCRIPTION)
    add_run(parser)
    add_settings(parser)


def run(arguments: argparse.Namespace) -> None:
    """Resume the run, and print the LoRA's path."""
    with launched(arguments) as (accelerator, bar):
        folder = run_of(arguments)
        train_job(*in_pack(read_job(arguments, folder.job), folder.path), accelerator, bar, folder)
