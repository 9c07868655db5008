"""``import FILE``: another trainer's configuration as a job file, with a report of every key."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..errors import UserError

DESCRIPTION = """\
Turn another trainer's configuration into a job file, and say what became of every key.

  python -m flux2_train import config.json --dataset multidatabackend.json --out job.json
  python -m flux2_train import job.yaml --out job.json
  python -m flux2_train import train.sh --dataset photos --out job.json

Known are SimpleTuner, AI Toolkit, musubi-tuner, OneTrainer, diffusers' FLUX.2 scripts and kohya's data set files.
"""


def add(commands) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "import", help="turn another trainer's configuration into a job file", description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("file", type=Path, nargs="?", metavar="FILE", help="JSON, YAML, TOML, or a text with a command")
    parser.add_argument(
        "--dataset", type=Path, metavar="FILE", help="the data set file that goes with it, or a folder of images"
    )
    parser.add_argument("--flavour", default="", help="the FLUX.2 to train, in place of the file's model")
    parser.add_argument("--out", type=Path, metavar="JOB.json", help="the job file to write; nothing is overwritten")
    parser.add_argument("--keys", action="store_true", help="print what becomes of every key that is known instead")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Print the report, and write the job. Raises UserError where the file cannot become one."""
    from ..importers.document import markdown
    from ..importers.importing import import_file, write_job

    if arguments.keys:
        print(markdown(), end="")
        return
    if arguments.file is None:
        raise UserError("import needs a FILE; name another trainer's configuration.")
    imported = import_file(arguments.file, arguments.dataset, arguments.flavour)
    print(imported.text)
    if imported.job is None:
        raise UserError(f"{arguments.file.name} cannot become a job: {' '.join(imported.blockers)}")
    if arguments.out is None:
        print("Add --out JOB.json to write the job.", file=sys.stderr)
    else:
        print(write_job(imported.job, arguments.out))
