"""Finding ComfyUI when we do not run inside it: tests, the terminal, benches.

Our folder ``nodes/`` bears the name of ComfyUI's module ``nodes.py``, which core itself imports, so ComfyUI's
path must come before ours on ``sys.path``.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ...errors import UserError
from . import starting

ROOT = Path(__file__).resolve().parents[3]


def find_comfyui() -> Path:
    """ComfyUI's folder: ``$COMFYUI_PATH``, else the one this checkout sits in, else ``.comfyui``."""
    named = os.environ.get("COMFYUI_PATH")
    candidates = [Path(named)] if named else [ROOT.parent.parent, ROOT / ".comfyui"]
    for path in candidates:
        if (path / "comfyui_version.py").is_file():
            return path.resolve()
    where = f"COMFYUI_PATH={named} holds no ComfyUI" if named else "No ComfyUI was found"
    raise UserError(f"{where}; set COMFYUI_PATH to a ComfyUI folder or run scripts/test once to fetch one.")


def import_comfyui(*arguments: str) -> Path:
    """Put ComfyUI first on ``sys.path`` and let it read ``arguments`` as its command line. Returns its folder.

    Without a GPU ``--cpu`` is added, which ComfyUI does not find out by itself. Its memory management is started as
    its main.py does (``starting``).
    """
    if "comfy.model_management" in sys.modules:
        return find_comfyui()
    path = prepare(*arguments)
    import torch
    from comfy.cli_args import args

    args.cpu = args.cpu or "--cpu" in arguments or not _has_gpu(torch)
    import utils.extra_config  # core's: up to 0.24.0 its nodes.py puts comfy/ first on sys.path, which has a utils.py

    import nodes  # noqa: F401  core's: imported here so that its name is taken before our folder can take it

    starting.after_import()
    _apply_folders(path, utils.extra_config.load_extra_path_config)
    return path


def prepare(*arguments: str) -> Path:
    """The part of ``import_comfyui`` that comes before torch is imported, for whoever imports torch earlier than that.

    ``arguments`` are those of the first call. Returns ComfyUI's folder.
    """
    path = find_comfyui()
    if "comfy.cli_args" not in sys.modules:
        _read_command_line(path, arguments)
        starting.before_torch()
    return path


def import_folders(*arguments: str) -> Path:
    """Import ComfyUI's ``folder_paths`` alone, with the folders that ``arguments`` name: torch stays out of it.

    For commands that ask where files lie and compute nothing. Returns ComfyUI's folder.
    """
    path = find_comfyui()
    if "folder_paths" in sys.modules:
        return path
    if "comfy.cli_args" not in sys.modules:
        _read_command_line(path, arguments)
    import utils.extra_config

    _apply_folders(path, utils.extra_config.load_extra_path_config)
    return path


def _read_command_line(path: Path, arguments: Sequence[str]) -> None:
    """Put ComfyUI's folder first on ``sys.path`` and let it read its command line."""
    sys.path[:] = [str(path)] + [p for p in sys.path if Path(p or ".").resolve() != path]
    import comfy.options

    ours, sys.argv = sys.argv, [sys.argv[0], *arguments]
    try:
        comfy.options.enable_args_parsing()
        import comfy.cli_args
    finally:
        sys.argv = ours


def _has_gpu(torch) -> bool:
    if hasattr(torch, "accelerator"):  # from 2.6 on
        return torch.accelerator.is_available()
    return torch.cuda.is_available() or torch.backends.mps.is_available()


def _apply_folders(path: Path, load_extra: Callable[[str], None]) -> None:
    """The folders that ComfyUI's command line and extra_model_paths.yaml name, which its main.py applies."""
    import folder_paths
    from comfy.cli_args import args

    own = path / "extra_model_paths.yaml"
    for config in (*([str(own)] if own.is_file() else []), *itertools.chain(*args.extra_model_paths_config or ())):
        load_extra(config)
    for kind in ("output", "input", "user"):
        named = getattr(args, f"{kind}_directory")
        if named:
            getattr(folder_paths, f"set_{kind}_directory")(os.path.abspath(named))
    for kind in ("diffusion_models", "text_encoders", "vae", "loras"):  # where core's own nodes save models
        folder_paths.add_model_folder_path(kind, os.path.join(folder_paths.get_output_directory(), kind))
