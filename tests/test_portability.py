"""What only some systems have is used only where the code says what happens on the others.

CI runs on Linux alone. So this reads the code of the engine and of the nodes for calls that Windows, macOS or a device
other than CUDA lacks, and compares them with the places below, each of which was looked at. What Windows makes of a
name is computed with PureWindowsPath.
"""

import ast
import re
from collections import Counter
from pathlib import Path, PureWindowsPath

import pytest

from flux2_train import names

ROOT = Path(__file__).resolve().parents[1]
OS = {
    "fork", "link", "symlink", "kill", "killpg", "getuid", "geteuid", "getpgid", "setsid", "sysconf", "statvfs",
    "fchmod", "O_NOFOLLOW", "O_DIRECTORY", "O_NONBLOCK", "sched_getaffinity", "posix_fadvise", "posix_fallocate",
    "mkfifo", "chown", "getloadavg", "uname", "nice", "wait", "waitpid", "pread", "preadv", "register_at_fork",
}  # fmt: skip
SIGNAL = {"SIGKILL", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGQUIT", "SIGCHLD", "alarm", "setitimer"}
MODULES = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "posix", "syslog", "curses"}
LINUX_PATH = re.compile(r"/(proc|dev|sys|tmp|etc|home|usr)\b")
# (file, what): why it is right on a system that lacks it
PLACES = {
    ("flux2_train/atomic.py", "os.link"): "not reached on Windows; a file system without second names has another way",
    ("flux2_train/atomic.py", "/proc/sys/kernel/random/boot_id"): "another identity where it cannot be read",
    ("flux2_train/atomic.py", "/proc/self/ns/pid"): "the same",
    ("flux2_train/host/system/facts.py", "/proc/cpuinfo"): "the standard library's answer where it is no file",
    ("flux2_train/host/system/rates.py", "/sys/module/amdgpu/version"): "no version where it is no file",
    ("flux2_train/host/system/rates.py", "os.posix_fadvise"): "the disk is not measured where it is missing",
    ("flux2_train/host/system/starting.py", "/dev/nvidiactl"): "only asked whether it is there",
    ("flux2_train/host/system/starting.py", "/dev/nvidia0"): "the same",
    ("flux2_train/host/system/starting.py", "/proc/driver/nvidia/version"): "the same",
    ("flux2_train/host/system/starting.py", "/dev/kfd"): "the same",
    ("flux2_train/host/system/starting.py", "/dev/dxg"): "the same",
    ("flux2_train/runs/results.py", "resource"): "behind the way for Windows",
    (
        "flux2_train/runs/shutdown.py",
        "os.kill",
    ): "ends its own process with the signal that it got, on Windows too",
}
# Calls of torch.cuda: the files in which a device that is no CUDA device never reaches them.
CUDA = {
    "flux2_train/host/borrowed/pipeline.py", "flux2_train/host/sampling/painter.py", "flux2_train/host/system/facts.py",
    "flux2_train/host/system/machine.py", "flux2_train/host/system/memory.py", "flux2_train/host/system/starting.py",
    "flux2_train/runs/results.py", "flux2_train/runs/several/training.py", "flux2_train/streaming/ring.py",
    "flux2_train/streaming/saved_tensors.py", "flux2_train/train/out_of_memory.py",
}  # fmt: skip


def sources():
    """(name, syntax tree) of every module of the engine and of the nodes."""
    for path in sorted([*(ROOT / "flux2_train").rglob("*.py"), *(ROOT / "nodes").rglob("*.py"), ROOT / "__init__.py"]):
        yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


SOURCES = list(sources())


def calls_and_names(tree):
    """What a module uses of what some system lacks."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.attr in {"os": OS, "signal": SIGNAL}.get(node.value.id, ()):
                yield f"{node.value.id}.{node.attr}"
        elif isinstance(node, ast.Import | ast.ImportFrom):
            roots = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            yield from {root.partition(".")[0] for root in roots if root} & MODULES
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and LINUX_PATH.match(node.value):
            yield node.value


def without_encoding(tree):
    """Lines on which text is read or written in the encoding of the system, which is not UTF-8 on Windows."""
    for node in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        given = {keyword.arg for keyword in node.keywords}
        texts = [each.value for each in node.args if isinstance(each, ast.Constant) and isinstance(each.value, str)]
        is_method = isinstance(node.func, ast.Attribute)
        owner = node.func.value.id if is_method and isinstance(node.func.value, ast.Name) else ""
        if name in ("read_text", "write_text") and is_method and owner != "bounded" and "encoding" not in given:
            yield node.lineno
        is_file = name == "open" and owner not in ("os", "Image") and not given & {"encoding", "formats"}
        if is_file and not any("b" in text for text in texts if re.fullmatch("[rwaxbt+]{1,3}", text)):
            yield node.lineno
        if owner == "subprocess" and given & {"text", "universal_newlines"} and "encoding" not in given:
            yield node.lineno


def test_what_some_system_lacks_is_used_in_known_places_only():
    found = {(file, what) for file, tree in SOURCES for what in calls_and_names(tree)}
    assert found == set(PLACES)


def test_text_is_read_and_written_as_utf_8():
    assert [(file, line) for file, tree in SOURCES for line in without_encoding(tree)] == []


def test_cuda_is_called_in_known_places_only():
    found = {
        file
        for file, tree in SOURCES
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and "torch.cuda." in ast.unparse(node.func)
        and "is_" not in ast.unparse(node.func)
    }
    assert found == CUDA


def test_this_test_notices():
    tree = ast.parse("import os, fcntl\nos.fork()\nopen('a')\nPath('/proc/x').read_text()\nopen('b', 'rb')\n")
    assert Counter(calls_and_names(tree)) == Counter(["fcntl", "os.fork", "/proc/x"])
    assert list(without_encoding(tree)) == [3, 4]


@pytest.mark.parametrize("name", [
    "zbot", "zbot v2.1", "人形", "con_", "console", "nulls", "com", "com10", "lpt", "a.b", "aux2",
])  # fmt: skip
def test_a_name_that_we_take_is_one_file_on_windows(name):
    path = PureWindowsPath("D:\\loras") / f"{name}.safetensors"
    assert names.problem(name) == "" and path.parent == PureWindowsPath("D:\\loras")
    assert not path.is_reserved() and path.name == f"{name}.safetensors"


@pytest.mark.parametrize("name", [
    "con", "CON", "nul.txt", "com1", "lpt9", "aux", "prn", "a:b", "a\\b", "a/b", "a?", "a*", 'a"', "a<b", "a|b", "a.",
    "a ", "..", "D:", "\\\\host\\share",
])  # fmt: skip
def test_a_name_that_windows_would_change_is_refused(name):
    assert names.problem(name)


def test_a_model_that_a_windows_graph_names_is_found(comfy_folders):
    """ComfyUI lists files in folders with the separator of its system, and graphs and jobs keep that."""
    from flux2_train.host.loading import files

    path = files.model_folder("loras") / "characters" / "zbot.safetensors"
    path.parent.mkdir()
    path.write_bytes(b"")
    assert files.existing("loras", "characters\\zbot.safetensors") == path
    assert files.existing("loras", "characters/zbot.safetensors") == path
    assert files.existing("loras", "other\\zbot.safetensors") is None
    path.unlink(), path.parent.rmdir()
