"""Libraries that happen to lie beside peft do not keep a LoRA from being trained."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import peft
import peft.import_utils
import pytest
import torch

from flux2_train.adapters.live import Adapters, Site, shadow
from flux2_train.settings.adapter import AdapterSettings

SITES = {"double_blocks.0.img_attn.qkv": Site(16, 48, 2, 2.0), "single_blocks.0.linear1": Site(16, 144, 3, 3.0)}
ROOT = Path(__file__).resolve().parents[2]
KINDS = [{}, {"dora": True}, {"rslora": True}, {"kind": "loha"}, {"kind": "lokr"}]


def values(**kind):
    adapters = Adapters(SITES, AdapterSettings(**kind), 0, row_norms=lambda name: torch.ones(SITES[name].out_features))
    return {name: value.detach().clone() for name, value in adapters.masters().items()}


def put_torchao(folder, version):
    """A torchao of that version that cannot be imported, as one that was made for an older torch."""
    (folder / "torchao").mkdir()
    (folder / "torchao" / "__init__.py").write_text("raise ImportError('this torchao does not fit this torch')")
    about = folder / f"torchao-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torchao\nVersion: {version}\n")


@pytest.fixture
def old_torchao(tmp_path, monkeypatch):
    """A torchao that peft has no use for: it looks at the version and refuses to go on."""
    put_torchao(tmp_path, "0.1.0")
    monkeypatch.syspath_prepend(tmp_path)
    _forget()
    yield
    monkeypatch.undo()
    _forget()


def _forget():
    importlib.invalidate_caches()
    peft.import_utils.is_torchao_available.cache_clear()


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_an_old_torchao_changes_nothing(request, kind):
    expected = values(**kind)
    request.getfixturevalue("old_torchao")
    with pytest.raises(ImportError, match="incompatible version of torchao"):
        peft.inject_adapter_in_model(peft.LoraConfig(target_modules=list(SITES)), shadow(SITES))
    found = values(**kind)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def imported(*folders):
    code = "import flux2_train.adapters.live"
    path = os.pathsep.join(map(str, (*folders, ROOT)))
    return subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, cwd=ROOT,
                          capture_output=True, text=True)  # fmt: skip


@pytest.mark.long
def test_where_peft_cannot_be_imported_a_sentence_says_what_to_do(tmp_path):
    (tmp_path / "accelerate.py").write_text("raise ImportError('this accelerate does not fit this torch')")
    last = imported(tmp_path).stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: peft cannot be imported (this accelerate does not fit this torch). A library")
    assert "pip uninstall torchao" in last
