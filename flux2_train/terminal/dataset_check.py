"""``dataset check``: what would be trained on in a folder, and what is wrong with it. Loads no model."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..settings.dataset_folder import DatasetSettings
from ..settings.training import TrainingSettings
from .options import add_flags, command, progress, start


def add(commands) -> None:
    """Add the command to the parser."""
    group = commands.add_parser("dataset", help="look at a folder of images").add_subparsers(
        metavar="WHAT", required=True
    )
    check = command(group, "check", run, "what would be trained on, and what is wrong with it; loads no model")
    check.add_argument(
        "folder", type=Path, help="folder of images, a .jsonl file, or a job file (.json, .toml), whose settings count"
    )
    references = {"nargs": "*", "metavar": "FOLDER"}
    add_flags(
        check, DatasetSettings, "resolution", "captions", "prompt", "trigger", "references", references=references
    )
    add_flags(check, TrainingSettings, "batch")
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
    from ..runs.graph_job import read_dataset

    return read_dataset(job.dataset, bar)


def _of_folder(arguments: argparse.Namespace, bar):
    from ..data.folder import read_folder

    request = DatasetSettings(
        arguments.folder,
        resolution=arguments.resolution,
        captions=arguments.captions,
        prompt=arguments.prompt,
        trigger=arguments.trigger,
        references=";".join(arguments.references),
    )
    return read_folder(request, report=bar)
