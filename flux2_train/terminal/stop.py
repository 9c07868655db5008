"""``stop RUN``: ends a run after the step in progress, as if that were its last one."""

from __future__ import annotations

import argparse

from .options import add_run, command, run_of

DESCRIPTION = """\
End a run that ComfyUI or another terminal is training. It ends after the step in progress, as if that were its last
one: the LoRA is saved under its own name, and in ComfyUI the rest of the graph runs with it.
"""


def add(commands) -> None:
    """Add the command to the parser."""
    add_run(command(commands, "stop", run, "end a run and keep its LoRA", description=DESCRIPTION))


def run(arguments: argparse.Namespace) -> None:
    """Ask the run to stop."""
    run_of(arguments).ask_to_stop()
