"""A hub on this computer that speaks the endpoints by which ``huggingface_hub`` uploads a folder.

https://huggingface.co/docs/hub/api, and https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md for large files.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import yaml
from huggingface_hub import constants

LOGIN = "hf_localtesttoken"


class Hub(ThreadingHTTPServer):
    """``repositories`` by name: whether private, and their files. ``sent`` are large files in the order of arrival.

    ``breaks`` counts commits whose connection is closed without an answer.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.repositories: dict[str, dict] = {}
        self.objects: dict[str, bytes] = {}
        self.sent: list[str] = []
        self.tokens: set[str] = set()
        self.breaks = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def local_hub() -> Iterator[Hub]:
    """A running hub; ``alice`` owns LOGIN."""
    hub = Hub()
    thread = Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


def log_in(hub: Hub, monkeypatch) -> None:
    """Make ``huggingface_hub`` use this hub, with alice's token in the environment.

    Large files go by git-lfs, which the library speaks where its own protocol (Xet) is off.
    """
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", LOGIN)


class Answer(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def reply(self, values, status: int = 200) -> None:
        data = json.dumps(values).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def is_known(self) -> bool:
        self.server.tokens.add(self.headers.get("Authorization", ""))
        if self.headers.get("Authorization") == f"Bearer {LOGIN}":
            return True
        self.body()
        self.reply({"error": "Invalid credentials"}, 401)
        return False

    def do_GET(self) -> None:
        name = self.path.removeprefix("/api/models/").partition("?")[0]
        if not self.is_known():
            return
        found = self.server.repositories.get(name)
        self.reply({"id": name, "private": found["private"], "siblings": []} if found else {"error": "none"},
                   200 if found else 404)  # fmt: skip

    def do_PUT(self) -> None:
        name = self.path.rpartition("/")[2]
        self.server.objects[name] = self.body()
        self.server.sent.append(name)
        self.reply({})

    def do_POST(self) -> None:
        if self.is_known():
            path, data = self.path.partition("?")[0], self.body()
            for ending, answer in ANSWERS.items():
                if ending in path:
                    return answer(self, path, data)
            self.reply({"error": path}, 404)

    def create(self, _path: str, data: bytes) -> None:
        asked = json.loads(data)
        owner = asked.get("organization") or "alice"
        name = f"{owner}/{asked['name']}"
        if owner != "alice":
            return self.reply({"error": "You don't have the rights to create a model under this namespace"}, 403)
        exists = name in self.server.repositories
        private = asked.get("private", False) or asked.get("visibility") == "private"  # before version 2, and since
        self.server.repositories.setdefault(name, {"private": private, "files": {}})
        address = {"url": f"{self.server.address}/{name}"}
        return self.reply({"error": "You already created this model repo", **address} if exists else address,
                          409 if exists else 200)  # fmt: skip

    def check_card(self, _path: str, data: bytes) -> None:
        """The hub reads the head of a model card before it takes it."""
        head = yaml.safe_load(json.loads(data)["content"].split("---\n")[1])
        errors = [] if isinstance(head, dict) and "tags" in head else [{"message": "the card has no head"}]
        self.reply({"errors": errors, "warnings": []}, 400 if errors else 200)

    def preupload(self, _path: str, data: bytes) -> None:
        files = [
            {"path": file["path"], "shouldIgnore": False,
             "uploadMode": "lfs" if file["path"].endswith((".safetensors", ".png")) else "regular"}
            for file in json.loads(data)["files"]
        ]  # fmt: skip
        self.reply({"files": files})

    def batch(self, _path: str, data: bytes) -> None:
        wanted = json.loads(data)["objects"]
        answers = [
            {**each, **({} if each["oid"] in self.server.objects else
             {"actions": {"upload": {"href": f"{self.server.address}/lfs/{each['oid']}"}}})}
            for each in wanted
        ]  # fmt: skip
        self.reply({"transfer": "basic", "objects": answers})

    def commit(self, path: str, data: bytes) -> None:
        if self.server.breaks:
            self.server.breaks -= 1
            self.close_connection = True
            return
        name = path.removeprefix("/api/models/").partition("/commit/")[0]
        files = self.server.repositories[name]["files"]
        for line in map(json.loads, data.splitlines()):
            value = line["value"]
            if line["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
        self.reply({"commitUrl": f"{self.server.address}/{name}/commit/1", "commitOid": "1" * 40, "success": True})


ANSWERS = {
    "/api/repos/create": Answer.create,
    "/api/validate-yaml": Answer.check_card,
    "/preupload/": Answer.preupload,
    "/info/lfs/objects/batch": Answer.batch,
    "/commit/": Answer.commit,
}
