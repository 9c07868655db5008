"""``python -m flux2_train``: see ``flux2_train.terminal.main``."""

import os
import shlex
import sys
from contextlib import suppress

from .errors import UserError
from .host.system.bootstrap import prepare

WITH_COMFYUI = ("train", "resume", "queue", "pack", "sample", "cache", "merge", "doctor")  # they compute with it


def options_of(arguments: list[str]) -> list[str]:
    """ComfyUI's own options, found in our command line before it is parsed."""
    for number, word in enumerate(arguments):
        if word == "--comfyui":
            return shlex.split(" ".join(arguments[number + 1 : number + 2]))
        if word.startswith("--comfyui="):
            return shlex.split(word.partition("=")[2])
    return []


def before_torch(arguments: list[str]) -> None:
    """Set up what ComfyUI's main.py sets up before torch is imported. The command itself reports what is wrong."""
    if arguments[:1] and (arguments[0] in WITH_COMFYUI or "--here" in arguments):
        with suppress(UserError, ValueError, ImportError):
            prepare(*options_of(arguments))


if __name__ == "__main__":
    before_torch(sys.argv[1:])
    from .terminal.main import main

    code = main(sys.argv[1:])
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        from .train.processes import leave

        leave(code)
    sys.exit(code)
