"""``settings``: every setting of a job file, with its default, its limits and what it does."""

from __future__ import annotations

import argparse
import json


def add(commands) -> None:
    """Add the command to the parser."""
    help = "list every setting of a job file, with its default, its limits and what it does"
    parser = commands.add_parser("settings", help=help, description=help)
    parser.add_argument("--schema", action="store_true", help="print a JSON schema instead, for an editor")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Print the tables of docs/settings.md, or the JSON schema."""
    from ..settings.document import markdown, schema

    print(json.dumps(schema(), indent=2) if arguments.schema else markdown())
