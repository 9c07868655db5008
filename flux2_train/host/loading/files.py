"""Model files: where ComfyUI keeps them, and what to tell a person when one is missing."""

from __future__ import annotations

from pathlib import Path

import folder_paths

from ...atomic import apart, move, sweep
from ...errors import UserError
from ...flavours import ModelFile
from ...names import shown
from . import places

AUTO = "auto"
USER, OUTPUT = "user folder", "output folder"
CACHE_PLACES = (USER, OUTPUT)


def resolve(folder: str) -> Path:
    """The path of a folder: absolute, or relative to ComfyUI's input folder or to the pack's own data sets.

    Raises UserError for one that may not be named (``places``).
    """
    named = _named(folder)
    if named.is_absolute():
        return places.require_readable(named)
    if not named.parts or ".." in named.parts:
        raise UserError(
            f"{shown(folder)!r} is no folder name; give a folder inside ComfyUI's input folder, or a full path."
        )
    candidates = [Path(folder_paths.get_input_directory()) / named, places.SHIPPED / named]
    return places.require_readable(next((path for path in candidates if path.is_dir()), candidates[0]))


def _named(name: str) -> Path:
    """The path that a person typed or pasted, with quotes around it or without."""
    name = places.require_local(name.strip().strip('"'))
    try:
        return Path(name).expanduser() if "\0" not in name else Path()
    except RuntimeError:  # ~somebody who does not exist
        return Path()


def resolve_file(name: str) -> Path:
    """The path of a file: absolute, or relative to ComfyUI's input folder.

    Raises UserError for any other, and for one that may not be named (``places``).
    """
    named = _named(name)
    if named.is_absolute():
        return places.require_readable(named)
    if not named.parts or ".." in named.parts:
        raise UserError(f"{shown(name)!r} is no file name; give a file inside ComfyUI's input folder, or a full path.")
    return places.require_readable(Path(folder_paths.get_input_directory()) / named)


def lora_folder() -> Path:
    """Where ComfyUI looks for LoRAs first."""
    return Path(folder_paths.get_folder_paths("loras")[0])


def run_folder() -> Path:
    """Where each run gets a folder for its job, losses, plot and report."""
    return Path(folder_paths.get_output_directory()) / "flux2_train"


def published_folder() -> Path:
    """Where a run's LoRA is made ready for others, in a folder of its own."""
    return Path(folder_paths.get_output_directory()) / "flux2_published"


def choices(folder: str) -> list[str]:
    """``auto`` and every file ComfyUI lists in that model folder."""
    return [AUTO, *folder_paths.get_filename_list(folder)]


def locate(files: tuple[ModelFile, ...], chosen: str = AUTO) -> Path:
    """Path of the chosen file, or of the first known one that exists; a generated file is made on first use.

    ``chosen`` is ``auto``, a name in the folder of these files, or a full path. If no file exists,
    raises UserError with file name, folder, repository and how to log in.
    """
    if Path(chosen).is_absolute():
        return _require_safetensors(Path(chosen))
    if chosen != AUTO:
        path = existing(files[0].folder, chosen)
        if path is None:
            raise UserError(_missing_choice(files, chosen))
        return path
    for file in files:
        path = find(file)
        if path is None and file.generate is not None:
            path = _generate(file)
        if path is not None:
            return path
    raise UserError(missing_message(files))


def _require_safetensors(path: Path) -> Path:
    if not path.is_file() or path.suffix != ".safetensors":
        raise UserError(f"{path} is no safetensors file that is there; give the name of one, or choose 'auto'.")
    return path


def name_of(folder: str, path: Path) -> str:
    """The name under which ``locate`` finds that file: relative to ComfyUI's model folder, or else the full path."""
    for root in folder_paths.get_folder_paths(folder):
        if path.is_relative_to(root):
            name = str(path.relative_to(root))
            if folder_paths.get_full_path(folder, name) == str(path):
                return name
    return str(path)


def find(file: ModelFile) -> Path | None:
    """The path of a known file, ``None`` if it does not exist."""
    return existing(file.folder, file.name)


def existing(folder: str, name: str) -> Path | None:
    """The path of a file in one of ComfyUI's model folders, by its name there or in a folder below; else ``None``."""
    spellings = (name, name.replace("\\", "/"))  # a graph or job from Windows names a file in a folder with backslashes
    path = next(filter(None, (folder_paths.get_full_path(folder, each) for each in spellings)), None)
    if path is None:  # the official templates put files in sub-folders too
        nested = (n for n in folder_paths.get_filename_list(folder) if Path(n).name == name)
        path = next((folder_paths.get_full_path(folder, n) for n in nested), None)
    return Path(path) if path else None


def _missing_choice(files: tuple[ModelFile, ...], name: str) -> str:
    known = next((file for file in files if file.name == name), None)
    if known is None:
        where = model_folder(files[0].folder)
        return f"{name} is not in {where}; choose 'auto' or a file that is there (press R to refresh the list)."
    there = [file.name for file in files if find(file)]
    have = f" Or choose 'auto', which takes the {there[0]} that you have." if there else ""
    return missing_message((known, *(file for file in files if file != known))) + have


def model_folder(folder: str) -> Path:
    """Where new files of that kind belong: the first of ComfyUI's folders for it that has the kind's own name."""
    paths = [Path(path) for path in folder_paths.get_folder_paths(folder)]
    return next((path for path in paths if path.name == folder), paths[0])


def missing_message(files: tuple[ModelFile, ...]) -> str:
    """What is missing and what to do: which file, from which repository, into which folder, and whether to log in."""
    file, others = files[0], [f.name for f in files[1:]]
    lines = [
        f"Missing model file {file.name}: download it from {file.url} and put it into {model_folder(file.folder)}."
    ]
    if file.gated:
        lines.append(
            f"The repository {file.repository} is gated: accept its licence on its page while logged in, then "
            "download there, or with `hf auth login` and `hf download`."
        )
    if others:
        lines.append(f"Also usable: {', '.join(others)}.")
    return " ".join(lines)


def _generate(file: ModelFile) -> Path:
    from safetensors.torch import save_file

    path = model_folder(file.folder) / file.name
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent)
    with apart(path) as folder:  # another process may be looking for it now
        save_file(file.generate(), folder / path.name, metadata={"format": "pt"})
        move(folder / path.name, path)
    return path


def cache_folder(place: str = USER) -> Path:
    """The folder of a cache."""
    if place == OUTPUT:
        return Path(folder_paths.get_output_directory()) / "flux2_train" / "cache"
    return places.user_folder()
