"""``pack RUN --to DIR`` and ``unpack DIR``: take a run to another machine and back."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace

from .options import add_run, command, progress, read_job, run_of, start, start_folders

DESCRIPTION = """\
Put a run into one new folder: its job, its last checkpoint, its data set, and the encoded captions and pictures.
Nothing in it says where it was made. Copy the folder to any machine that has the transformer, and go on there; the text
encoder is not needed, and the VAE only if previews are painted (--set previews=null paints none):

  python -m flux2_train pack zbot --to zbot.pack
  python -m flux2_train resume zbot.pack/runs/zbot             there; or under accelerate launch
  python -m flux2_train train zbot.pack/runs/zbot/job.json     there, for a run without a checkpoint
  python -m flux2_train unpack zbot.pack                       at home, after copying the folder back
"""


def _add_pack(commands) -> None:
    parser = command(commands, "pack", run, "put a run into a folder that goes on anywhere", description=DESCRIPTION)
    add_run(parser)
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="the new folder")
    parser.set_defaults(set=[])


def run(arguments: argparse.Namespace) -> None:
    """Pack the run, and print the folder."""
    folder = run_of(arguments)
    job = read_job(arguments, folder.job)
    start(arguments)
    import torch

    from ..runs.pack.writing import pack
    from .train import in_pack

    with progress() as bar, torch.inference_mode():
        job, packed = in_pack(job, folder.path)
        made = pack(folder, job, arguments.to, bar, packed)
    print(made.root)


def _add_unpack(commands) -> None:
    parser = command(commands, "unpack", unpack, "bring a run back that has gone on in a pack elsewhere")
    parser.add_argument("pack", type=Path, metavar="DIR", help="the pack")


def unpack(arguments: argparse.Namespace) -> None:
    """Put the pack's last checkpoint into the run that was packed, and print the run's folder."""
    start_folders(arguments)
    from ..host.loading.files import run_folder
    from ..runs.pack.coming_back import bring_back

    run = bring_back(arguments.pack, run_folder())
    print(run.path)


COMMANDS = [SimpleNamespace(add=_add_pack), SimpleNamespace(add=_add_unpack)]
