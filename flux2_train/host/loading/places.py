"""Which folders and files may be named in a workflow: one rule for all of them, and for the targets of links.

A workflow comes from the internet, and where the server listens on a network, so does whoever queues it. ComfyUI's
input and output folders and the pack's own data sets may always be read. Any other place may be read while the server
listens on this computer alone, where people type ``D:\\pictures``; else only the folders that the person at the
computer has allowed, in an environment variable or in a file that the server does not serve.
"""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path

import folder_paths
from comfy.cli_args import args

from ...bounded import is_file, read_text
from ...errors import UserError
from ...names import shown

VARIABLE = "FLUX2_TRAIN_FOLDERS"
FILE = "folders.txt"
MOST_BYTES = 1 << 16
# Not a folder named "examples": ComfyUI would look for workflow templates in it instead of in workflows/.
SHIPPED = Path(__file__).resolve().parents[3] / "datasets"


def user_folder() -> Path:
    """The pack's own folder: ComfyUI's server does not serve user folders that begin with two underscores."""
    return Path(folder_paths.get_user_directory()) / "__flux2_train"


def may_read(path: Path) -> bool:
    """Whether a workflow may name what lies at ``path``, after all links are followed."""
    if listens_here_alone():
        return not is_on_another_computer(str(path))
    real = Path(os.path.realpath(path))
    return any(real.is_relative_to(os.path.realpath(root)) for root in _roots())


def may_write(folder: Path) -> bool:
    """Whether captions, marks and masks in a folder may be changed: where it may be read, but not in the pack's own."""
    return may_read(folder) and not Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(SHIPPED))


def require_readable(path: Path) -> Path:
    """``path``, if it may be named. Raises UserError that says who may allow it and how."""
    if not may_read(path):
        raise UserError(
            f"{shown(str(path), 300)} lies outside ComfyUI's input and output folders, and this server also listens to "
            f"other computers. Put it into the input folder; or whoever runs the server adds its folder as a line to "
            f"{user_folder() / FILE}, or to the environment variable {VARIABLE}."
        )
    return path


def require_local(name: str) -> str:
    """``name``, if it names no other computer. Opening such a name on Windows sends the user's credentials there.

    Raises UserError, and opens nothing.
    """
    if is_on_another_computer(name):
        raise UserError(
            f"{shown(name)!r} names another computer, which is not opened from a workflow: give its share a drive "
            "letter or mount it, and name the folder there."
        )
    return name


def is_on_another_computer(name: str) -> bool:
    """Whether a name begins as Windows writes the name of a share or of a device: with two slashes of either kind."""
    return len(name) > 1 and name[0] in "\\/" and name[1] in "\\/"


def listens_here_alone() -> bool:
    """Whether ComfyUI's server can be reached from this computer only."""
    return all(_is_here(address.strip()) for address in args.listen.split(","))


def _is_here(address: str) -> bool:
    try:
        return address == "localhost" or ipaddress.ip_address(address).is_loopback
    except ValueError:  # a host name, or empty for every address
        return False


def _roots() -> list[Path]:
    """The folders that may always be read, and those that the person at the computer has allowed."""
    own = [Path(folder_paths.get_input_directory()), Path(folder_paths.get_output_directory()), SHIPPED]
    named = os.environ.get(VARIABLE, "").split(os.pathsep)
    file = user_folder() / FILE
    if is_file(file):
        named += read_text(file, MOST_BYTES, " as folders").splitlines()
    return own + [Path(line.strip()) for line in named if Path(line.strip()).is_absolute()]
