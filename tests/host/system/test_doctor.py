"""What a user pastes into an issue: everything that matters, and nothing about them."""

import argparse
import getpass
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from flux2_train import __version__
from flux2_train.formats import DTYPES
from flux2_train.host.system import facts, rates
from flux2_train.terminal import doctor

pytestmark = pytest.mark.long  # the command starts ComfyUI

TOKEN = "hf_" + "aB3dE5gH" * 4


def run(home: Path, **more: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "HOME": str(home), "USER": "alice.smith", "LOGNAME": "alice.smith", "HF_TOKEN": TOKEN}
    return subprocess.run([sys.executable, "-m", "flux2_train", "doctor"], cwd=ROOT, env={**environment, **more},
                          capture_output=True, text=True)  # fmt: skip


@pytest.fixture(scope="module")
def said(tmp_path_factory) -> str:
    """The report of a ComfyUI that lies in somebody's home folder."""
    home = tmp_path_factory.mktemp("alice.smith")
    comfyui = home / "ComfyUI"
    comfyui.symlink_to(os.environ["COMFYUI_PATH"])
    done = run(home, COMFYUI_PATH=str(comfyui))
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_names_what_runs_here(said):
    assert f"flux2_train  {__version__}" in said and f"torch {facts.version_of('torch')}" in said
    assert f"comfyui      {facts.comfyui_version()}" in said and f"python       {sys.version.split()[0]}" in said
    lines = {line.partition(" ")[0]: line for line in said.splitlines()}
    assert all(name in lines["formats"] for name in DTYPES)
    assert "klein-9b" in lines and "rates" in lines


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_it_says_so(said):
    assert "no card: ComfyUI runs on the processor" in said
    assert "trains in    fp32" in said and "No card: klein and dev are too slow on a processor" in said


def test_it_tells_nothing_about_the_user(said):
    assert "alice" not in said and TOKEN not in said and "HF_TOKEN" not in said and str(Path.home()) not in said


def test_where_comfyui_does_not_start_the_rest_is_told(tmp_path):
    done = run(tmp_path, COMFYUI_PATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "comfyui      not found" in done.stdout and f"torch {facts.version_of('torch')}" in done.stdout
    assert "ComfyUI does not start: UserError: COMFYUI_PATH=~ holds no ComfyUI" in done.stdout


@pytest.mark.parametrize("error", [AssertionError("Torch not compiled with CUDA enabled"), KeyError("cuda")], ids=str)
def test_whatever_comfyui_ends_with_is_told_with_the_rest(monkeypatch, error):
    def fails(arguments):
        raise error

    monkeypatch.setattr(doctor, "start", fails)
    lines = list(doctor.report(argparse.Namespace(comfyui="", measure=False)))
    assert f"  - ComfyUI does not start: {type(error).__name__}: {error}" in lines
    assert any(line.startswith("packages     torch ") for line in lines)


@pytest.mark.parametrize("text, left", [
    ("/home/HERE/x", "~/x"), (f"a token {TOKEN} in a message", "a token (left out) in a message"),
    (f"WANDB {'0af1' * 10}", "WANDB (left out)"), ("/srv/USER-NAME/models", "/srv/USER/models"),
    (r"C:\Users\USER-NAME\x", r"C:\Users\USER\x"), ("torch 2.11.0+cu130", "torch 2.11.0+cu130"),
])  # fmt: skip
def test_names_and_tokens_are_taken_out(monkeypatch, text, left):
    monkeypatch.setattr(facts, "find_home", lambda: Path("/home/HERE"))
    monkeypatch.setattr(getpass, "getuser", lambda: "USER-NAME")
    assert facts.scrubbed(text) == left


CARD = {
    "type": "cuda", "device": "cuda:0", "computes_in": "bf16", "name": "NVIDIA GeForce RTX 2070",
    "driver": "driver 580", "cuda": "13.0", "hip": "", "memory": 8e9, "memory_free": 7e9,
    "dynamic_vram": True, "why_no_dynamic_vram": "",
    "allocator": "cudaMallocAsync", "why_other_allocator": "", "capability": "sm_75", "cards": 1,
}  # fmt: skip


def test_a_card_with_all_its_numbers():
    lines = list(doctor._card(CARD))
    assert lines == [
        "device       cuda:0: NVIDIA GeForce RTX 2070, sm_75, 8.0 GB, 7.0 GB free, driver 580, CUDA 13.0",
        "dynamic VRAM on",
        "allocator    cudaMallocAsync",
    ]


@pytest.mark.parametrize("changed, sentence", [
    ({"computes_in": "fp16"}, "This card has no bf16: it trains in fp16 with loss scaling."),
    ({"dynamic_vram": False, "why_no_dynamic_vram": "this is WSL"},
     "Dynamic VRAM is off (this is WSL): ComfyUI loads by estimates."),
])  # fmt: skip
def test_what_is_less_than_it_could_be_is_named(changed, sentence):
    assert sentence in doctor._problems({**CARD, **changed}) and sentence not in doctor._problems(CARD)


def test_rates_that_were_not_measured_are_not_claimed(monkeypatch, tmp_path):
    monkeypatch.setattr(rates, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(rates, "_known", {})
    lines = list(doctor._uses({"type": "cpu", "computes_in": "fp32"}, measure=False))
    assert any(line.startswith("rates        not measured yet") for line in lines)
    lines = list(doctor._uses({"type": "cpu", "computes_in": "fp32"}, measure=True))
    assert any(line.startswith("rates        measured on this") for line in lines)


def test_the_command_is_there():
    from flux2_train.terminal.main import parser

    assert isinstance(parser().parse_args(["doctor", "--measure"]), argparse.Namespace)
