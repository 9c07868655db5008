"""Scripts of tests/processes that tests run in processes of their own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import forks
from comfy_server import free_port

ROOT = Path(__file__).resolve().parents[2]
PROCESSES = ROOT / "tests" / "processes"
_OWN = (str(ROOT), str(ROOT / "tests" / "helpers"))
PYTHONPATH = os.pathsep.join(filter(None, [*_OWN, os.environ.get("PYTHONPATH")]))


def run_probe(script: str, *arguments, **environment: str) -> str:
    """What a script prints that measures its own process, on one thread. Fails the test if it does not end well.

    With an ``environment`` of its own, which is read when a process starts, it is not forked from another.
    """
    command = [PROCESSES / script, *map(str, arguments)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    if environment:
        done = subprocess.run([sys.executable, *command], cwd=ROOT, env=variables, capture_output=True, text=True)
    else:
        done = forks.run(command, variables, ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


KILLED_WRITER = """
import os, pathlib, signal, sys
from flux2_train.atomic import replacing
with replacing(pathlib.Path(sys.argv[1])) as partial:
    partial.write_text("half")
    print(partial, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def killed_while_writing(path: Path) -> Path:
    """The file that a process left behind which was killed while it wrote ``path``."""
    done = subprocess.run([sys.executable, "-c", KILLED_WRITER, path], cwd=ROOT, capture_output=True, text=True)
    partial = Path(done.stdout.strip())
    assert done.returncode == -signal.SIGKILL and partial.read_text() == "half" and not path.exists()
    return partial


def run_in_two_processes(script: str, *arguments) -> subprocess.CompletedProcess:
    """Two processes on the CPU that train together."""
    return run_in_processes(2, script, *arguments)


def run_in_processes(count: int, script: str, *arguments) -> subprocess.CompletedProcess:
    """Several processes on the CPU that train together, with the variables that ``accelerate launch`` would give them.

    They are forked, which saves most of their start; where that cannot be, ``accelerate launch`` starts them.
    """
    port, command = str(free_port()), [PROCESSES / script, *map(str, arguments)]
    without_gpu = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1"}
    if not forks.forkable():
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(count),
                  "--main_process_port", port, "--num_cpu_threads_per_process", "1", *command]  # fmt: skip
        return subprocess.run(launch, env=without_gpu, capture_output=True, text=True, timeout=600)
    together = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count),
                "LOCAL_WORLD_SIZE": str(count)}  # fmt: skip
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    done = forks.run_together([(command, {**without_gpu, **together, **rank}) for rank in ranks], ROOT)
    code = next((each.returncode for each in done if each.returncode), 0)
    return subprocess.CompletedProcess(command, code, *("".join(getattr(each, name) for each in done)
                                                        for name in ("stdout", "stderr")))  # fmt: skip
