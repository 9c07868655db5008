"""Which folders and files a workflow may name: one rule, and who may widen it."""

import os
import sys

import pytest
from comfy.cli_args import args

from flux2_train.errors import UserError
from flux2_train.host.loading import files, places
from flux2_train.settings.prompts import from_file

SHARES = [r"\\host\share", "//host/share", r"\\?\C:\x", r"\\.\pipe\x", r"/\host/share", '"//host/share"', " //host/x"]


@pytest.fixture
def listening(monkeypatch):
    """``listening(address)``: what ComfyUI was started with as --listen."""
    return lambda address: monkeypatch.setattr(args, "listen", address)


@pytest.mark.parametrize("address, alone", [
    ("127.0.0.1", True), ("127.0.0.1,::1", True), ("localhost", True), ("127.3.0.1", True), ("0.0.0.0", False),
    ("0.0.0.0,::", False), ("127.0.0.1,192.168.0.2", False), ("", False), ("mypc", False), ("::", False),
])  # fmt: skip
def test_who_can_reach_the_server_is_told_from_its_addresses(listening, address, alone):
    listening(address)
    assert places.listens_here_alone() is alone


def test_any_folder_may_be_named_while_the_server_listens_on_this_computer_alone(listening, tmp_path):
    listening("127.0.0.1")
    assert files.resolve(str(tmp_path)) == tmp_path and files.resolve_file(str(tmp_path / "a.txt")).parent == tmp_path


def test_a_server_on_a_network_reads_comfyuis_folders_and_what_its_owner_allows(
    listening, tmp_path, comfy_folders, monkeypatch
):
    listening("0.0.0.0")
    (tmp_path / "pictures" / "mine").mkdir(parents=True)
    (tmp_path / "pictures" / "p.txt").write_text("a prompt")
    for wrong in (tmp_path / "pictures", "/etc", "/", "~"):
        with pytest.raises(UserError, match="outside ComfyUI's input and output folders.*FLUX2_TRAIN_FOLDERS"):
            files.resolve(str(wrong))
    with pytest.raises(UserError, match=r"also listens to other computers.*folders.txt"):
        files.resolve_file(str(tmp_path / "pictures" / "p.txt"))
    inside = comfy_folders / "input" / "data"
    inside.mkdir(exist_ok=True)
    assert files.resolve("data") == files.resolve(str(inside)) == inside
    assert files.resolve("robot") == places.SHIPPED / "robot"
    assert files.resolve(str(comfy_folders / "output")) == comfy_folders / "output"
    monkeypatch.setenv(places.VARIABLE, os.pathsep.join(["", "relative", str(tmp_path / "pictures")]))
    assert files.resolve(str(tmp_path / "pictures" / "mine")).name == "mine"
    assert from_file(files.resolve_file(str(tmp_path / "pictures" / "p.txt")))[0].text == "a prompt"
    monkeypatch.delenv(places.VARIABLE)
    places.user_folder().mkdir(exist_ok=True)
    (places.user_folder() / places.FILE).write_text(f"\n{tmp_path / 'pictures'}\n")
    try:
        assert files.resolve(str(tmp_path / "pictures")).name == "pictures"
        with pytest.raises(UserError, match="outside"):
            files.resolve(str(tmp_path / "pictures2"))
    finally:
        (places.user_folder() / places.FILE).unlink()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows needs rights for links")
def test_a_links_target_must_lie_where_a_folder_could_be_named(listening, tmp_path, comfy_folders):
    listening("0.0.0.0")
    (tmp_path / "secret").mkdir(exist_ok=True)
    (tmp_path / "secret" / "p.txt").write_text("the secret")
    link = comfy_folders / "input" / "linked"
    link.symlink_to(tmp_path / "secret")
    try:
        for resolve in (lambda: files.resolve("linked"), lambda: files.resolve_file("linked/p.txt")):
            with pytest.raises(UserError, match="outside"):
                resolve()
        listening("127.0.0.1")
        assert from_file(files.resolve_file("linked/p.txt"))[0].text == "the secret"
    finally:
        link.unlink()


@pytest.mark.parametrize("name", SHARES)
@pytest.mark.parametrize("resolve", [files.resolve, files.resolve_file])
def test_other_computers_are_refused_before_anything_is_opened(monkeypatch, name, resolve):
    def opened(*_, **__):
        raise AssertionError("looked at it")

    for module, call in ((os, "stat"), (os, "lstat"), (os.path, "realpath"), (os, "open")):
        monkeypatch.setattr(module, call, opened)
    with pytest.raises(UserError, match="names another computer, which is not opened from a workflow"):
        resolve(name)


@pytest.mark.parametrize("name", ["~nobody-of-that-name/x", "a\0b", "", "..", "a/../../b"])
def test_names_of_nothing_are_refused(name):
    for resolve in (files.resolve, files.resolve_file):
        with pytest.raises(UserError, match="is no f"):
            resolve(name)


def test_nothing_of_a_file_comes_back_in_an_error(tmp_path):
    """Any .json of this computer could be named as a prompt file."""
    for number, text in enumerate(('{"api_key": 1}', '{"x": {"password": "hunter2"}}', '{"a": "hunter2", ',
                                   '{"hunter2": {"prompt": "hunter2", "adapter_strength": "hunter2"}}',
                                   '{"a": {"prompt": "hunter2", "adapter_strength": 99}}', "[1]")):  # fmt: skip
        path = tmp_path / f"{number}.json"
        path.write_text(text)
        with pytest.raises(UserError) as caught:
            from_file(path)
        assert not any(word in str(caught.value) for word in ("hunter2", "api_key", "password"))
