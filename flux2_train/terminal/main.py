"""The command line: its commands and exit codes.

Exit codes: 0 done, 1 failed, 2 the command line or the job file is wrong, 3 the run was paused,
130 stopped with Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys

from ..errors import Paused, UserError
from . import (
    convert,
    dataset_check,
    doctor,
    flavours,
    import_command,
    merge_command,
    pack,
    plan,
    prune,
    publish,
    queue,
    resume,
    sample,
    settings,
    steer,
    stop,
    train,
)
from .options import UsageError

COMMANDS = (
    train, resume, stop, *steer.COMMANDS, queue, *pack.COMMANDS, sample, merge_command, convert, publish, prune,
    dataset_check, flavours, settings, import_command, plan, doctor,
)  # fmt: skip
DESCRIPTION = "FLUX.2 LoRAs from a terminal: what the nodes do, without ComfyUI's server."
EPILOG = "Every command explains itself: python -m flux2_train COMMAND --help. ComfyUI is found as COMFYUI_PATH says."


def parser() -> argparse.ArgumentParser:
    """The parser of all commands; ``run`` of its result is the command's function."""
    top = argparse.ArgumentParser("python -m flux2_train", description=DESCRIPTION, epilog=EPILOG)
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(commands)
    return top


def main(arguments: list[str]) -> int:
    """Run one command. Returns the exit code."""
    if not arguments:
        parser().print_help()
        return 0
    try:
        parsed = parser().parse_args(arguments)
    except SystemExit as end:  # argparse has printed the help, or what is wrong
        return end.code or 0
    try:
        parsed.run(parsed)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except Paused as paused:
        print(paused, file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0
