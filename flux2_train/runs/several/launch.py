"""Starts ``accelerate launch`` for a job in a file, and ends every process of it."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[3]  # the pack's folder, in which ``-m flux2_train`` is found
AFTER_KILL = 5.0  # seconds in which the system ends a process that was killed
PATIENCE = 30.0  # seconds that processes have to end by themselves
OF_LAUNCHERS = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def command(count: int, words: Sequence[str], threads: int) -> list[str]:
    """The command line that runs ``python -m flux2_train WORDS`` in ``count`` processes of ``threads`` threads each."""
    return [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--num_processes",
        str(count), "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(_free_port()),
        "--num_cpu_threads_per_process", str(max(1, threads)), "-m", "flux2_train", *words,
    ]  # fmt: skip


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def comfyui_options(arguments: Sequence[str]) -> str:
    """ComfyUI's own options of this program, as ``--comfyui`` takes them."""
    return f"--comfyui={shlex.join(arguments)}"


def start(line: Sequence[str], log: Path, comfyui: Path) -> subprocess.Popen:
    """Start the command. What its processes say goes to ``log``; ``comfyui`` is the folder of the ComfyUI they use."""
    environment = {name: value for name, value in os.environ.items() if name not in OF_LAUNCHERS}
    environment |= {"COMFYUI_PATH": str(comfyui), "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as file:
        return subprocess.Popen(  # noqa: S603  the line is ``command``'s; of a workflow only a file's name is in it
            line, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C in the server's window is passed on by the server alone
        )  # fmt: skip


def end(process: subprocess.Popen, patience: float = PATIENCE) -> None:
    """End the command and all processes that it has started: asked first, killed after ``patience`` seconds."""
    everyone = _family(process)
    for each in everyone:
        with suppress(psutil.Error):  # it has ended meanwhile
            each.terminate()
    _, left = psutil.wait_procs(everyone, patience)
    for each in left:
        with suppress(psutil.Error):
            each.kill()
    psutil.wait_procs(left, AFTER_KILL)
    process.wait()


def _family(process: subprocess.Popen) -> list[psutil.Process]:
    try:
        parent = psutil.Process(process.pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
