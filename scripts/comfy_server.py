"""A real ComfyUI server process with this pack in it, and a client that queues graphs and follows its events."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path

import aiohttp

ROOT = Path(__file__).resolve().parents[1]
PACK = "comfyui-flux2-train"
SHOWN_EVENT = "flux2_train.shown"  # what a node of this pack shows, as nodes/shown.py sends it
START_SECONDS = 180

WITHOUT_API_NODES = "--disable-api-nodes"  # those of paid services, which take three seconds of each start
OnEvent = Callable[[str, dict], None]


class ServerError(RuntimeError):
    """The server did not start, refused a graph, or failed while running it."""


class ComfyServer:
    """``with ComfyServer(folder) as server``: models, inputs and outputs live below ``folder``, nowhere else."""

    def __init__(self, folder: Path, *arguments: str):
        self.folder, self.arguments = folder, arguments
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "server.log"
        self.process: subprocess.Popen | None = None

    def __enter__(self) -> ComfyServer:
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def start(self) -> None:
        """Start the process and wait until it answers. Raises ServerError with the end of its log if it does not."""
        _link_pack(self.folder / "custom_nodes" / PACK)
        command = [
            sys.executable, str(Path(os.environ["COMFYUI_PATH"]) / "main.py"), "--base-directory", str(self.folder),
            "--listen", "127.0.0.1", "--port", str(self.port), "--disable-auto-launch",
            "--database-url", f"sqlite:///{self.folder / 'comfyui.db'}", *_device_arguments(), *self.arguments,
        ]  # fmt: skip
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=self.folder)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                self.get("/system_stats")
                return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.3)
        self.stop()
        raise ServerError(f"ComfyUI did not start; the end of its log:\n{self.log_tail()}")

    def stop(self) -> None:
        """End the process; kill it if it does not end by itself."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def log_tail(self, lines: int = 30) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def get(self, path: str):
        """The JSON answer of a GET request."""
        return json.loads(self.get_bytes(path))

    def get_bytes(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return answer.read()

    def post(self, path: str, body: dict) -> dict:
        """The JSON answer of a POST request. Raises ServerError with the server's own words for a refused one."""
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.loads(answer.read() or b"{}")
        except urllib.error.HTTPError as error:
            raise ServerError(error.read().decode()) from error

    def run(self, prompt: dict, on_event: OnEvent = lambda kind, data: None, timeout: float = 1800) -> dict:
        """Queue a graph in API format, follow its websocket events, and return its entry in the history.

        ``on_event(kind, data)`` gets every message; texts that nodes show come as kind ``text``. Raises ServerError
        if the graph is refused or a node fails.
        """
        return asyncio.run(asyncio.wait_for(self._run(prompt, on_event), timeout))

    async def _run(self, prompt: dict, on_event: OnEvent) -> dict:
        client = uuid.uuid4().hex
        async with aiohttp.ClientSession() as session:
            address = f"{self.url}/ws?clientId={client}"
            async with session.ws_connect(address, max_msg_size=0) as socket_:
                queued = await asyncio.to_thread(self.post, "/prompt", {"prompt": prompt, "client_id": client})
                failure = await _follow(socket_, queued["prompt_id"], on_event)
        if failure:
            raise ServerError(failure)
        return await asyncio.to_thread(self.history, queued["prompt_id"])

    def history(self, prompt_id: str) -> dict:
        """The finished graph's entry, which the server files a moment after its last event."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            entry = self.get(f"/history/{prompt_id}").get(prompt_id)
            if entry:
                return entry
            time.sleep(0.05)
        raise ServerError(f"graph {prompt_id} did not appear in the history")


async def _follow(socket_, prompt_id: str, on_event: OnEvent) -> str:
    """Pass events on until the graph ends. Returns why it failed, empty if it did not."""
    async for message in socket_:
        if message.type == aiohttp.WSMsgType.BINARY:
            kind, data = "binary", {"bytes": len(message.data)}
        elif message.type == aiohttp.WSMsgType.TEXT:
            event = json.loads(message.data)
            kind, data = event["type"], event["data"]
            if kind == SHOWN_EVENT:
                on_event("text", {"node": data["node"], "text": data["text"], "picture": data["picture"]})
                continue
        else:
            continue
        on_event(kind, data)
        if data.get("prompt_id") != prompt_id:
            continue
        if kind == "execution_success":
            return ""
        if kind == "execution_error":
            return f"{data['node_type']}: {data['exception_message'].strip()}"
        if kind == "execution_interrupted":
            return f"{data['node_type']}: interrupted"
    return "the server closed the connection"


def _link_pack(link: Path) -> None:
    """Make the repository appear as a custom node, as a clone into custom_nodes would."""
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink():
        link.unlink()
    elif link.exists():
        shutil.rmtree(link)
    link.symlink_to(ROOT, target_is_directory=True)


def _device_arguments() -> list[str]:
    import torch

    return [] if torch.cuda.is_available() or torch.backends.mps.is_available() else ["--cpu"]


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
