"""``publish RUN``: a folder with a run's LoRA, a model card and pictures, and its way to a hub."""

from __future__ import annotations

import argparse
from pathlib import Path

from .options import UsageError, add_run, command, run_of, start_folders

DESCRIPTION = """\
Write a folder that is ready for a hub such as huggingface.co: the LoRA, a model card (base model and its licence,
trigger word, settings, how to use it in ComfyUI and diffusers), pictures before and after, and the loss curve. No path
and no name of this computer is in it. Read the card and change what you like; it is never written over.

  python -m flux2_train publish zbot
  python -m flux2_train publish zbot --push alice/zbot-lora             (private)
  python -m flux2_train publish zbot --push alice/zbot-lora --public

--push uses the hub's own login: 'hf auth login', or the environment variable HF_TOKEN.
"""


def add(commands) -> None:
    """Add the command to the parser."""
    parser = command(commands, "publish", run, "make a run's LoRA ready for others", description=DESCRIPTION)
    add_run(parser)
    parser.add_argument(
        "--to", type=Path, metavar="DIR", help="the folder to write (default: output/flux2_published/RUN)"
    )
    parser.add_argument(
        "--lora", default="", metavar="FILE", help="a LoRA in models/loras in place of the one that the run saved last"
    )
    parser.add_argument("--push", default="", metavar="OWNER/NAME", help="upload it into this repository, privately")
    parser.add_argument("--public", action="store_true", help="with --push: everybody may see it")


def run(arguments: argparse.Namespace) -> None:
    """Write the folder, and upload it where asked."""
    if arguments.public and not arguments.push:
        raise UsageError("--public says how to --push; name a repository with it.")
    folder = run_of(arguments)
    start_folders(arguments)
    from ..host.loading.files import lora_folder, published_folder
    from ..runs.publishing.contents import publish
    from ..runs.publishing.hub import push

    published = publish(folder, lora_folder(), arguments.to or published_folder() / folder.name, arguments.lora)
    print(published)
    if arguments.push:
        print(push(published.folder, arguments.push, arguments.public))
