"""Python for tests' child processes that starts in a second: forked from a process that has imported what is slow.

``python forks.py MODULE...`` imports these modules, then reads JSON lines. A line is a list of processes to start side
by side, each by Python's arguments, the environment, the working directory and the files for stdout and stderr. It
answers with a line when all have ended: their exit codes, a signal as a negative number. If one fails, the others are
ended.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from functools import cache
from pathlib import Path
from types import ModuleType

# What ComfyUI and tests import, but for ComfyUI: it reads its command line when it is imported.
SLOW = (
    "torch", "torch._dynamo", "torch.export", "torchvision", "torchaudio", "transformers", "transformers.models.auto",
    "scipy.stats", "scipy.integrate", "torchsde", "kornia", "comfy_kitchen", "peft", "accelerate", "aiohttp", "av",
    "einops", "cv2", "psutil", "yaml", "safetensors.torch", "PIL.Image", "hypothesis", "pytest",
)  # fmt: skip


def run(arguments: list, environment: dict[str, str], cwd: Path) -> subprocess.CompletedProcess:
    """What ``python ARGUMENTS`` (``-c CODE``, ``-m MODULE ...`` or a script) would do in a process of its own.

    A process that uses a GPU cannot be forked from one that has looked for it, so there Python starts anew, as it does
    where forking is not safe.
    """
    if not forkable():
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    (done,) = run_together([(arguments, environment)], cwd)
    return done


def run_together(commands: list[tuple[list, dict[str, str]]], cwd: Path) -> list[subprocess.CompletedProcess]:
    """``run`` for several (arguments, environment) side by side, only where ``run`` forks."""
    with tempfile.TemporaryDirectory() as folder:
        files = [[Path(folder) / f"{name}{number}" for name in ("out", "err")] for number in range(len(commands))]
        asked = [[list(map(str, arguments)), environment, str(cwd), *map(str, pair)]
                 for (arguments, environment), pair in zip(commands, files, strict=True)]  # fmt: skip
        server = _server()
        server.stdin.write(json.dumps(asked) + "\n")
        server.stdin.flush()
        codes = json.loads(server.stdout.readline())
        return [subprocess.CompletedProcess(arguments, code, *(file.read_text() for file in pair))
                for (arguments, _), code, pair in zip(commands, codes, files, strict=True)]  # fmt: skip


def forkable() -> bool:
    """False where a process that was forked could not use the device, or where forking is not safe."""
    import torch

    return not torch.cuda.is_available() and sys.platform == "linux"


@cache
def _server() -> subprocess.Popen:
    """One for each process of tests; it ends with it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen([sys.executable, __file__, *SLOW], env=environment, stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, text=True)  # fmt: skip
    atexit.register(lambda: (server.stdin.close(), server.wait()))
    return server


def _become(arguments: list[str], environment: dict[str, str], cwd: str, out: str, err: str) -> None:
    """Go on as the Python process that was asked for. Does not return."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    for path, number in ((os.devnull, 0), (out, 1), (err, 2)):
        file = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    code = 0
    try:
        _python(*arguments)
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else bool(leaving.code)
        if isinstance(leaving.code, str):
            print(leaving.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)


def _python(kind: str, *arguments: str) -> None:
    sys.argv = [kind, *arguments[kind in ("-c", "-m") :]]
    own = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:0] = ["" if kind in ("-c", "-m") else str(Path(kind).resolve().parent), *own]
    if kind == "-c":
        sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(arguments[0], "<string>", "exec", dont_inherit=True), vars(sys.modules["__main__"]))
    elif kind == "-m":
        sys.argv[0] = arguments[0]
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(kind, run_name="__main__")


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr
    sys.path.pop(0)  # this folder: the processes name theirs
    for name in sys.argv[1:]:
        with contextlib.suppress(Exception):  # a process that needs it will say what is wrong with it
            importlib.import_module(name)
    for line in sys.stdin:
        started = {}
        for number, process in enumerate(json.loads(line)):
            pid = os.fork()
            if not pid:
                sys.stdout = answers
                _become(*process)
            started[pid] = number
        print(json.dumps(_codes(started)), file=answers, flush=True)


def _codes(running: dict[int, int]) -> list[int]:
    """The exit codes of processes, by their number; the others are ended when one fails."""
    codes = [0] * len(running)
    while running:
        pid, status = os.wait()
        if pid not in running:
            continue  # a process that one of ours has left behind
        code = codes[running.pop(pid)] = os.waitstatus_to_exitcode(status)
        if code:
            for other in running:
                os.kill(other, signal.SIGTERM)
    return codes


if __name__ == "__main__":
    main()
