"""What the pack relies on in ComfyUI: all of it is in one table, and whatever is missing is named."""

import ast
import importlib
import inspect
import logging
import time
from enum import EnumMeta
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import tiny_flux2

from flux2_train.errors import UserError
from flux2_train.flavours import FLAVOURS
from flux2_train.host import contract
from flux2_train.host.borrowed.borrow import borrow
from flux2_train.host.contract import NEEDS, Need
from flux2_train.host.encoding import text_encoder, tokenizers
from flux2_train.host.encoding.text_encoder import load_text_encoder
from flux2_train.host.encoding.vae import load_vae
from flux2_train.host.loading import load
from flux2_train.host.lora import apply
from flux2_train.host.sampling import sample

ROOT = Path(__file__).resolve().parents[2]
CORE = ("comfy", "comfy_extras", "comfy_api", "folder_paths", "node_helpers", "latent_preview", "server", "execution")
ALL = [need for needs in NEEDS.values() for need in needs]
# Of these the table has the module's one object through which we reach them; comfy_api's classes are its public face.
PUBLIC = ("comfy_api.latest.io", "comfy_api.latest.ui", "comfy.cli_args.args", "comfy_api.latest.ComfyExtension")


@pytest.fixture(autouse=True)
def _looked_for_anew():
    contract.lacking.cache_clear()
    yield
    contract.lacking.cache_clear()


def dotted(name: str) -> str:
    return name.replace(":", ".")


def used() -> dict[str, set[str]]:
    """Every name of ComfyUI's code in ours, dotted, with the keywords with which it is called."""
    found: dict[str, set[str]] = {}
    for path in [*(ROOT / "flux2_train").rglob("*.py"), *(ROOT / "nodes").rglob("*.py"), ROOT / "__init__.py"]:
        tree, names = ast.parse(path.read_text(encoding="utf-8")), {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.split(".")[0] in CORE:
                        names[alias.asname or alias.name.split(".")[0]] = (
                            alias.name if alias.asname else alias.name.split(".")[0]
                        )
            if isinstance(node, ast.ImportFrom) and not node.level and node.module.split(".")[0] in CORE:
                for alias in node.names:
                    names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                    found.setdefault(f"{node.module}.{alias.name}", set())

        def whole(node, names=names):
            if isinstance(node, ast.Attribute):
                before = whole(node.value)
                return before and f"{before}.{node.attr}"
            return names.get(node.id) if isinstance(node, ast.Name) else None

        for node in ast.walk(tree):
            name = whole(node)
            if name:
                found.setdefault(name, set())
            if isinstance(node, ast.Call) and whole(node.func):
                found.setdefault(whole(node.func), set()).update(k.arg for k in node.keywords if k.arg)
    return found


def is_module(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def test_the_table_has_every_name_of_comfyuis_that_the_code_has():
    table = {dotted(need.name): need for need in ALL}
    found = {name: keywords for name, keywords in used().items() if not name.startswith(PUBLIC) and not is_module(name)}
    assert [n for n in found if not any(f"{n}.".startswith(f"{k}.") or k.startswith(f"{n}.") for k in table)] == []
    assert {n: words for n, words in found.items() if n in table and not words <= set(table[n].takes)} == {}


def test_nothing_is_missing_here_and_looking_takes_milliseconds():
    assert contract.sentences() == []
    contract.lacking.cache_clear()
    began = time.perf_counter()
    contract.sentences()
    assert time.perf_counter() - began < 0.05


def owner(need: Need):
    module, _, path = need.name.partition(":")
    *parts, last = path.split(".")
    thing = importlib.import_module(module)
    for part in parts:
        thing = getattr(thing, part)
    return thing, last


def remove(need: Need, monkeypatch) -> None:
    """Take a name away from where it is: a module, a class or the class from which that has it, or an enumeration."""
    thing, name = owner(need)
    if isinstance(thing, EnumMeta):
        monkeypatch.setattr(importlib.import_module(thing.__module__), thing.__name__, SimpleNamespace())
    elif inspect.isclass(thing) and hasattr(thing, name):
        monkeypatch.delattr(next(kind for kind in thing.__mro__ if name in vars(kind)), name)
    elif inspect.isclass(thing):  # the constructor sets it
        monkeypatch.setattr(thing, "__init__", lambda self: None)
    else:
        monkeypatch.delattr(thing, name)


@pytest.mark.parametrize("need", ALL, ids=lambda need: need.name)
def test_each_that_is_gone_is_named_with_what_it_is_for(need, monkeypatch):
    thing, name = owner(need)
    if not (hasattr(thing, name) or contract._is_set_by(thing, name)):
        assert need.optional
        return
    remove(need, monkeypatch)
    told = [text for text in contract.sentences() if f"{dotted(need.name)} ({need.why})" in text]
    monkeypatch.undo()
    assert bool(told) != need.optional
    use = next(use for use, needs in NEEDS.items() if need in needs)
    for text in told:
        assert text.startswith(f"ComfyUI {contract.version()} has no ") and f"does not work: {use}. " in text


@pytest.mark.parametrize("need", [need for need in ALL if need.takes], ids=lambda need: need.name)
def test_each_parameter_that_is_gone_is_named(need, monkeypatch):
    thing, name = owner(need)
    real = getattr(thing, name)
    if inspect.isclass(real):
        monkeypatch.setattr(real, "__init__", lambda self: None)
    else:
        monkeypatch.setattr(thing, name, lambda: None)
    (told,) = contract.sentences()
    assert all(f"{dotted(need.name)}'s parameter {parameter}" in told for parameter in need.takes)


def gone(monkeypatch, use: str) -> str:
    """Take away what ``use`` needs first, and return its name."""
    need = next(need for need in NEEDS[use] if not need.optional)
    remove(need, monkeypatch)
    return dotted(need.name)


ENTRIES = {
    contract.LOADING: lambda model, path: load.load_transformer(path),
    contract.TEXT: lambda model, path: load_text_encoder(path, FLAVOURS["nano"]),
    contract.PICTURES: lambda model, path: load_vae(path, FLAVOURS["nano"]),
    contract.TRAINING: lambda model, path: borrow(model, {}).__enter__(),
    contract.SAMPLING: lambda model, path: sample.conditions(model, None, "a", "", [], 1.0),
    contract.LORAS: lambda model, path: apply.put(model, None, 1.0),
}


@pytest.mark.parametrize("use", ENTRIES)
def test_what_needs_it_is_refused_in_a_sentence_and_the_rest_works(use, monkeypatch, tmp_path):
    model = tiny_flux2()
    name = gone(monkeypatch, use)
    with pytest.raises(UserError, match=f"has no {name}.*this does not work: {use}. The rest of the pack works"):
        ENTRIES[use](model, tmp_path / "a.safetensors")
    for other in ENTRIES:
        if other != use and name not in str(NEEDS[other]):
            contract.require(other)


def test_the_log_says_it_once_when_the_pack_is_loaded(monkeypatch, caplog):
    name = gone(monkeypatch, contract.LORAS)
    with caplog.at_level(logging.WARNING):
        contract.say()
    (record,) = caplog.records
    assert record.message.startswith("FLUX.2 Train: ComfyUI") and name in record.message


def test_a_pack_that_cannot_be_imported_says_whose_name_is_missing(monkeypatch):
    lost = ImportError("cannot import name 'x'")
    assert "cannot import name 'x'. Install the packages of its requirements.txt" in contract.why_not_loaded(lost)
    name = gone(monkeypatch, contract.TRAINING)
    contract.lacking.cache_clear()
    assert f"cannot be loaded: ComfyUI {contract.version()} has no {name}" in contract.why_not_loaded(lost)


@pytest.mark.parametrize("installed, of_core, refused", [
    ("4.57.6", False, False), ("5.1.0", False, True), ("5.1.0", True, False),
])  # fmt: skip
def test_devs_tokenizer_is_refused_only_where_core_cannot_build_it(installed, of_core, refused, monkeypatch):
    monkeypatch.setattr(tokenizers.importlib.metadata, "version", lambda name: installed)
    monkeypatch.setattr(tokenizers.importlib.util, "find_spec", lambda name: of_core or None)
    told = tokenizers.problem(FLAVOURS["dev"])
    assert bool(told) == refused and tokenizers.problem(FLAVOURS["klein-4b"]) == ""
    if refused:
        assert "install transformers==4.57.6, or a newer ComfyUI" in told
        with pytest.raises(UserError, match=r"transformers 5.1.0 cannot build the tokenizer of dev"):
            text_encoder._check_tokenizer(FLAVOURS["dev"])
