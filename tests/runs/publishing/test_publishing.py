"""A run's LoRA made ready for others: the folder, its card, and its way to a hub that runs on this computer."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml
from local_hub import LOGIN, local_hub, log_in
from made_runs import make_run
from PIL import Image
from safetensors.torch import save_file

from flux2_train.errors import UserError
from flux2_train.flavours import BASE, DISTILLED, FLAVOURS
from flux2_train.runs.folder import RunFolder
from flux2_train.runs.publishing.card import card
from flux2_train.runs.publishing.contents import OF_PEFT, publish
from flux2_train.runs.publishing.facts import Facts, facts_of
from flux2_train.runs.publishing.hub import push
from flux2_train.runs.writers.png import write_png
from flux2_train.terminal.main import main

ROOT = Path(__file__).resolve().parents[3]
USER = "user-of-this-machine"


@pytest.fixture
def home(tmp_path):
    """A person's folder, whose name must be in nothing that is published."""
    (tmp_path / USER / "loras").mkdir(parents=True)
    return tmp_path / USER


@pytest.fixture
def run(home):
    """A run with a LoRA file, a loss curve and two previews whose files hold their prompt and a path."""
    path = make_run(home / "runs", "zbot")
    save_file({"a": torch.ones(2)}, home / "loras" / "zbot.safetensors", metadata={"format": "pt"})
    asked = {"prompt": "zbot | a `robot`\non a <b>hill</b>", "seed": 7, "file": str(home)}
    write_png(Image.new("RGB", (64, 48), "teal"), path / "previews" / "step_000100_1.png", json.dumps(asked))
    Image.new("RGB", (64, 48), "white").save(path / "loss.png")
    known = {"flavour": "klein-4b", "base_file": "flux-2-klein-base-4b.safetensors", "images": 16}
    (path / "report.json").write_text(json.dumps(known))
    return RunFolder(path)


@pytest.fixture(scope="module")
def hub():
    with local_hub() as running:
        yield running


@pytest.fixture
def logged_in(hub, monkeypatch):
    """The running hub, which knows this computer's login. Its token is in the environment alone."""
    log_in(hub, monkeypatch)
    hub.repositories.clear(), hub.objects.clear(), hub.sent.clear(), hub.tokens.clear()
    return hub


def facts(**changes) -> Facts:
    given = {"name": "zbot", "flavour": FLAVOURS["klein-4b"], "variant": BASE, "trigger": "zbot", "steps": 100,
             "pictures": 16, "format": "comfyui", "settings": (("rank", "16"),), "examples": ()}  # fmt: skip
    return Facts(**given | changes)


def head(text: str) -> dict:
    return yaml.safe_load(text.split("---\n")[1])


def test_the_folder_has_the_lora_a_card_and_pictures_and_nothing_of_this_computer(run, home):
    published = publish(run, home / "loras", home / "out" / "zbot")
    names = {path.relative_to(published.folder).as_posix() for path in published.folder.rglob("*") if path.is_file()}
    assert names == set(published.files) == {
        "README.md", "zbot.safetensors", "images/1_base.png", "images/1_lora.png", "images/loss.png",
    }  # fmt: skip
    assert (published.folder / "zbot.safetensors").read_bytes() == (home / "loras" / "zbot.safetensors").read_bytes()
    for name in names:
        assert USER.encode() not in (published.folder / name).read_bytes(), name
    with Image.open(published.folder / "images" / "1_lora.png") as picture:
        assert not picture.info.get("flux2_train") and picture.getpixel((0, 0)) == (0, 128, 128)


def test_the_card_says_what_the_run_says(run, home):
    text = (publish(run, home / "loras", home / "out").folder / "README.md").read_text()
    found = head(text)
    assert found["base_model"] == "black-forest-labs/FLUX.2-klein-base-4B" and found["license"] == "apache-2.0"
    assert found["instance_prompt"] == "zbot" and "lora" in found["tags"]
    assert found["widget"] == [
        {"text": "zbot | a `robot` on a <b>hill</b>", "output": {"url": "images/1_lora.png"}},
    ]  # fmt: skip
    assert "It has learned in 100 steps from 16 pictures." in text and "Flux2KleinPipeline" in text
    assert "| `zbot \\| a 'robot' on a <b>hill</b>` | ![base model](images/1_base.png)" in text
    assert 'load_lora_weights(".", weight_name="zbot.safetensors")' in text


@pytest.mark.parametrize("flavour, variant, base, licence", [
    ("klein-9b", BASE, "FLUX.2-klein-base-9B", ["other", "flux-non-commercial-license"]),
    ("klein-9b", DISTILLED, "FLUX.2-klein-9B", ["other", "flux-non-commercial-license"]),
    ("klein-4b", DISTILLED, "FLUX.2-klein-4B", ["apache-2.0", None]),
    ("dev", BASE, "FLUX.2-dev", ["other", "flux-dev-non-commercial-license"]),
])  # fmt: skip
def test_each_flavour_names_its_base_model_and_licence(flavour, variant, base, licence):
    found = head(card(facts(flavour=FLAVOURS[flavour], variant=variant), "zbot.safetensors", []))
    assert found["base_model"] == f"black-forest-labs/{base}"
    assert [found["license"], found.get("license_name")] == licence
    assert ("license_link" in found) == (licence[0] == "other")


def test_nano_names_no_base_model():
    text = card(facts(flavour=FLAVOURS["nano"]), "zbot.safetensors", [])
    assert not {"base_model", "license"} & set(head(text)) and "from_pretrained" not in text


def test_diffusers_is_named_for_formats_that_it_reads():
    assert "diffusers**" in card(facts(format="peft"), "./", [])
    assert "weight_name" not in card(facts(format="peft"), "./", [])
    assert "diffusers**" not in card(facts(format="kohya"), "zbot.safetensors", [])


def test_a_card_that_somebody_has_changed_stays(run, home):
    first = publish(run, home / "loras", home / "out")
    (first.folder / "README.md").write_text("mine")
    second = publish(run, home / "loras", home / "out")
    assert second.card_kept and not first.card_kept and "stays as it is" in str(second)
    assert (second.folder / "README.md").read_text() == "mine"


def test_a_lora_in_two_files_is_published(run, home):
    folder = home / "loras" / "zbot"
    folder.mkdir()
    for name in OF_PEFT:
        (folder / name).write_bytes(b"{}")
    assert set(publish(run, home / "loras", home / "out", "zbot").files) > set(OF_PEFT)


@pytest.mark.parametrize("lora, message", [
    ("gone.safetensors", "gone.safetensors is no longer in"), ("../zbot.safetensors", "is no longer in"),
])  # fmt: skip
def test_a_lora_that_is_not_there_is_named(run, home, lora, message):
    with pytest.raises(UserError, match=message):
        publish(run, home / "loras", home / "out", lora)


def test_a_run_without_a_lora_says_how_to_get_one(run, home):
    run.note(lora="")
    with pytest.raises(UserError, match="convert zbot:last"):
        publish(run, home / "loras", home / "out")


def test_a_folder_with_other_things_is_left_alone(run, home):
    with pytest.raises(UserError, match="holds other things, loras first"):
        publish(run, home / "loras", home)
    assert sorted(path.name for path in home.iterdir()) == ["loras", "runs"]


def test_a_picture_without_its_base_is_left_out(run):
    (run.previews / "base_1.png").unlink()
    assert not facts_of(run).examples


def test_it_is_uploaded_privately_and_whole(run, home, logged_in):
    published = publish(run, home / "loras", home / "out")
    address = push(published.folder, "alice/zbot")
    repository = logged_in.repositories["alice/zbot"]
    assert address == f"{logged_in.address}/alice/zbot" and repository["private"] is True
    assert repository["files"] == {name: (published.folder / name).read_bytes() for name in published.files}
    assert LOGIN.encode() not in b"".join(repository["files"].values())


def test_another_file_in_the_folder_is_not_uploaded(run, home, logged_in):
    published = publish(run, home / "loras", home / "out")
    (published.folder / "notes.txt").write_text("mine")
    push(published.folder, "zbot", public=True)
    assert set(logged_in.repositories["alice/zbot"]["files"]) == set(published.files)
    assert logged_in.repositories["alice/zbot"]["private"] is False


def test_a_public_repository_gets_nothing_unless_that_is_said(run, home, logged_in):
    logged_in.repositories["alice/zbot"] = {"private": False, "files": {}}
    published = publish(run, home / "loras", home / "out")
    with pytest.raises(UserError, match="alice/zbot is public: everybody sees"):
        push(published.folder, "alice/zbot")
    assert not logged_in.repositories["alice/zbot"]["files"] and not logged_in.sent


def test_after_a_broken_connection_what_has_arrived_is_not_sent_again(run, home, logged_in):
    published = publish(run, home / "loras", home / "out")
    logged_in.breaks = 1
    with pytest.raises(UserError, match="what has arrived is not sent again"):
        push(published.folder, "alice/zbot")
    arrived = list(logged_in.sent)
    push(published.folder, "alice/zbot")
    assert arrived and logged_in.sent == arrived
    assert set(logged_in.repositories["alice/zbot"]["files"]) == set(published.files)


@pytest.mark.parametrize("name, token, message", [
    ("bob/zbot", LOGIN, r"refuses bob/zbot \(403\): the token may not write there"),
    ("alice/zbot", "hf_old", r"refuses alice/zbot \(401\): its token is not valid"),
    ("a/b/c", LOGIN, "'a/b/c' is no repository's name"), ("../x", LOGIN, "is no repository's name"),
])  # fmt: skip
def test_what_the_hub_refuses_is_said(run, home, logged_in, monkeypatch, name, token, message):
    monkeypatch.setenv("HF_TOKEN", token)
    published = publish(run, home / "loras", home / "out")
    with pytest.raises(UserError, match=message) as refused:
        push(published.folder, name)
    assert token not in str(refused.value)


def test_without_a_login_it_says_how_to_log_in(run, home, logged_in, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    published = publish(run, home / "loras", home / "out")
    with pytest.raises(UserError, match="hf auth login"):
        push(published.folder, "alice/zbot")
    assert not logged_in.tokens


def test_an_empty_folder_is_not_uploaded(tmp_path):
    with pytest.raises(UserError, match="holds no README.md"):
        push(tmp_path, "alice/zbot")


def test_without_the_library_it_says_what_to_install(run, home, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    published = publish(run, home / "loras", home / "out")
    with pytest.raises(UserError, match="pip install huggingface_hub"):
        push(published.folder, "alice/zbot")


def test_from_a_terminal(run, home, logged_in, comfy_folders, capsys, monkeypatch):
    monkeypatch.setattr("flux2_train.host.loading.files.lora_folder", lambda: home / "loras")
    assert main(["publish", str(run.path), "--to", str(home / "out"), "--push", "alice/zbot"]) == 0
    printed = capsys.readouterr().out
    assert "5 files" in printed and f"{logged_in.address}/alice/zbot" in printed
    assert main(["publish", str(run.path), "--public"]) == 2


@pytest.mark.long
def test_from_a_terminal_it_needs_no_card(run, home):
    """In a process of its own, as ComfyUI's model code asks for a card as soon as it is imported."""
    (home / "models" / "loras").mkdir(parents=True)
    shutil.copy(home / "loras" / "zbot.safetensors", home / "models" / "loras")
    command = [sys.executable, "-m", "flux2_train", "publish", run.path, f"--comfyui=--base-directory '{home}'"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (home / "output" / "flux2_published" / "zbot").iterdir()} == {
        "README.md", "zbot.safetensors", "images",
    }  # fmt: skip
