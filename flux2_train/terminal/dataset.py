"""``dataset check``: what would be trained on in a folder, and what is wrong with it. Loads no model."""

from __future__ import annotations

import argparse
from pathlib import Path

from .options import command, progress, start


def add(commands) -> None:
    """Add the command to the parser."""
    group = commands.add_parser("dataset", help="look at a folder of images").add_subparsers(
        metavar="WHAT", required=True
    )
    check = command(group, "check", run, "what would be trained on, and what is wrong with it; loads no model")
    check.add_argument(
        "folder", type=Path, help="folder of images, a .jsonl file, or a job file (.json, .toml), whose settings count"
    )
    check.add_argument("--resolution", type=int, default=1024)
    check.add_argument("--batch", type=int, default=1, help="for the number of steps per epoch")
    check.add_argument("--captions", default="text file", help="text file, file name, one prompt or jsonl")
    check.add_argument("--prompt", default="", help="caption of images that have none")
    check.add_argument("--trigger", default="")
    check.add_argument("--references", type=Path, nargs="*", default=[], help="folders of references")
    check.add_argument("--sheet", type=Path, help="write the contact sheet into this image file")


def run(arguments: argparse.Namespace) -> None:
    """Print counts, buckets and problems; draw the contact sheet."""
    from ..data.report import contact_sheet, summary

    read = _of_job if arguments.folder.suffix.lower() in (".json", ".toml") else _of_folder
    with progress() as bar:
        dataset = read(arguments, bar)
    print(summary(dataset, (arguments.batch,)))
    if arguments.sheet:
        contact_sheet(dataset).save(arguments.sheet)
        print(f"contact sheet: {arguments.sheet}")


def _of_job(arguments: argparse.Namespace, bar):
    from ..settings.job import load

    job = load(arguments.folder)
    start(arguments)
    from ..runs.jobs import read_dataset

    return read_dataset(job.dataset, bar)


def _of_folder(arguments: argparse.Namespace, bar):
    from ..data.folder import read_folder
    from ..settings.dataset import DatasetSettings

    request = DatasetSettings(
        arguments.folder,
        resolution=arguments.resolution,
        captions=arguments.captions,
        prompt=arguments.prompt,
        trigger=arguments.trigger,
        references=tuple(arguments.references),
    )
    return read_folder(request, report=bar)
