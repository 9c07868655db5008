"""Commands that compute nothing answer at once: they import neither torch nor what takes as long."""

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import flux2_train

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "accelerate", "peft", "numpy", "scipy", "PIL")
COMMANDS = (
    "train", "resume", "stop", "pause", "save", "preview", "change", "queue", "pack", "unpack", "sample", "merge",
    "convert", "publish", "cache latents", "cache embeds", "cache prune", "dataset check", "flavours", "settings",
    "import", "plan", "doctor",
)  # fmt: skip
PACKAGES = [m.name for m in pkgutil.walk_packages(flux2_train.__path__, "flux2_train.") if m.ispkg]
# Runs command lines one after the other, each as `python -m flux2_train` does, and says what they have imported.
TYPED = f"""
import runpy, sys
for line in sys.argv[1:]:
    sys.argv = ["flux2_train", *line.split()]
    try:
        runpy.run_module("flux2_train", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        assert not end.code, line
print("imported:", [name for name in {HEAVY} if name in sys.modules])
"""


def python(code, *arguments):
    """What a new process prints."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("lines", [["", "--help", *(f"{name} --help" for name in COMMANDS)], ["flavours"]],
                         ids=["help", "flavours"])  # fmt: skip
def test_help_and_the_list_of_files_need_no_torch(lines):
    printed = python(TYPED, *lines)
    assert printed.endswith("imported: []\n")
    assert printed.count("usage:") == sum(line != "flavours" for line in lines)


def test_every_command_is_among_them():
    from flux2_train.terminal.main import parser

    assert {name.split()[0] for name in COMMANDS} == set(parser()._subparsers._group_actions[0].choices)


def test_the_tables_and_the_packages_need_no_torch():
    names = ", ".join(["flux2_train.formats", "flux2_train.flavours", *PACKAGES])
    code = f"import sys, {names}; print([name for name in {HEAVY} if name in sys.modules])"
    assert python(code) == "[]\n"


def test_folders_of_the_command_line_and_of_the_file_of_paths_count(tmp_path):
    """``flavours`` starts less of ComfyUI than other commands do: its folders are the same."""
    vae = tmp_path / "base" / "models" / "vae" / "flux2-vae.safetensors"
    encoder = tmp_path / "other" / "text_encoders" / "qwen_3_4b.safetensors"
    for file in (vae, encoder):
        file.parent.mkdir(parents=True)
        file.write_bytes(b"")
    paths = tmp_path / "paths.yaml"
    paths.write_text(f"mine:\n  base_path: {tmp_path / 'other'}\n  text_encoders: text_encoders\n")
    command = [sys.executable, "-m", "flux2_train", "flavours", "--comfyui",
               f"--base-directory {tmp_path / 'base'} --extra-model-paths-config {paths}"]  # fmt: skip
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert f"vae/{vae.name}: {vae}" in printed
    assert f"text_encoders/{encoder.name}: {encoder}" in printed
    assert "vae/flux2-nano-4-vae.safetensors: generated on first use" in printed
