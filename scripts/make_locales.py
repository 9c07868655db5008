"""Writes locales/: what the nodes say in each language, in the format that ComfyUI reads.

``python scripts/make_locales.py`` (in the environment of scripts/test) takes English from the nodes themselves and from
``words("...")`` in web/, but for web/vendor/. The other languages come from scripts/locales/LANGUAGE.json, which holds
each English text once with its translation. A text without a translation stays English in ComfyUI. The script names it,
adds it to that file with an empty translation, removes what nothing says any more, and exits with 1. Fill them in and
run it again.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "scripts" / "locales"
LANGUAGES = ("es", "zh", "ja", "fr")
COMMAND = "python scripts/make_locales.py"
WEB = re.compile(r'\bwords\(\s*"((?:[^"\\]|\\.)*)"')


def texts_of(info: dict) -> dict:
    """A node's texts as ComfyUI's nodeDefs.json has them, from what ``/object_info`` says about the node."""
    inputs = {}
    for name, spec in inputs_of(info):
        options = spec[1] if len(spec) > 1 else {}
        inputs[key(name)] = {"name": options.get("display_name") or name, "tooltip": options.get("tooltip")}
        inputs |= growing(name, options.get("template") or {})
    outputs = {str(index): {"name": name} for index, name in enumerate(info["output_name"])}
    return {
        "display_name": info["display_name"], "description": info["description"], "inputs": inputs, "outputs": outputs,
    }  # fmt: skip


def growing(name: str, template: dict) -> dict:
    """The tooltips of the sockets that grow out of one. Their names are numbered and the same in every language."""
    for spec in (template.get("input") or {}).get("required", {}).values():
        tooltip = spec[1].get("tooltip")
        return {key(f"{name}.{template['prefix']}{number}"): {"tooltip": tooltip} for number in range(template["max"])}
    return {}


def inputs_of(info: dict) -> Iterator[tuple[str, list]]:
    for group in ("required", "optional"):
        yield from (info["input"].get(group) or {}).items()


def key(name: str) -> str:
    """An input's name as the frontend looks it up: a dot would part two keys."""
    return name.replace(".", "_")


def web_files() -> list[Path]:
    """Our JavaScript, without what others wrote."""
    web = ROOT / "web"
    return [path for path in sorted(web.rglob("*.js")) if "vendor" not in path.relative_to(web).parts]


def web_texts() -> list[str]:
    """What our JavaScript says, in the order of files and lines."""
    found = [text for path in web_files() for text in WEB.findall(path.read_text("utf-8"))]
    return list(dict.fromkeys(json.loads(f'"{text}"') for text in found))


def english(infos: dict[str, dict]) -> dict[str, dict]:
    """The English files by name: the nodes', and the rest."""
    kinds = dict.fromkeys(info["category"].rpartition("/")[2] for info in infos.values())
    return {
        "nodeDefs.json": {name: texts_of(info) for name, info in infos.items()},
        "main.json": {
            "nodeCategories": {kind: kind for kind in kinds},
            "flux2_train": {text: text for text in web_texts()},
        },
    }


def said(tree: dict) -> list[str]:
    """Every text in a file, once."""
    found: dict[str, None] = {}
    for value in tree.values():
        found |= dict.fromkeys(said(value) if isinstance(value, dict) else [value] if value else [])
    return list(found)


def translated(tree: dict, known: dict[str, str]) -> dict:
    """The same file in another language; what has no translation is left out."""
    result = {}
    for name, value in tree.items():
        new = translated(value, known) if isinstance(value, dict) else known.get(value)
        if new or isinstance(value, dict):
            result[name] = new
    return result


def translations(language: str) -> dict[str, str]:
    """English texts with their translations, as somebody wrote them."""
    path = SOURCES / f"{language}.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def render(infos: dict[str, dict]) -> dict[str, str]:
    """Every file's text by its path below ``locales/``."""
    source, files = english(infos), {}
    for language in ("en", *LANGUAGES):
        known = translations(language)
        for name, tree in source.items():
            files[f"{language}/{name}"] = as_text(tree if language == "en" else translated(tree, known))
    return files


def missing(infos: dict[str, dict], language: str) -> list[str]:
    known = translations(language)
    return [text for tree in english(infos).values() for text in said(tree) if not known.get(text)]


def stale(infos: dict[str, dict], language: str) -> list[str]:
    needed = {text for tree in english(infos).values() for text in said(tree)}
    return [text for text in translations(language) if text not in needed]


def as_text(tree: dict) -> str:
    return json.dumps(tree, indent=1, ensure_ascii=False) + "\n"


def renew(infos: dict[str, dict], language: str) -> int:
    """Put the texts of today into a language's file, and say what changed. Returns how many lack a translation."""
    known, lacking = translations(language), missing(infos, language)
    for text in lacking:
        print(f"{language}: no translation: {text}")
    for text in stale(infos, language):
        print(f"{language}: nothing says any more, removed: {text}")
    needed = dict.fromkeys(text for tree in english(infos).values() for text in said(tree))
    (SOURCES / f"{language}.json").write_text(as_text({text: known.get(text, "") for text in needed}), "utf-8")
    return len(lacking)


def node_infos() -> dict[str, dict]:
    """What ComfyUI would answer at ``/object_info`` about our nodes."""
    sys.path[:0] = [str(ROOT)]
    from flux2_train.host.system.bootstrap import import_comfyui

    import_comfyui()
    name = "comfyui_flux2_train"
    spec = importlib.util.spec_from_file_location(name, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return infos_of(module.NODES)


def infos_of(nodes: list) -> dict[str, dict]:
    return {node.GET_SCHEMA().node_id: node.GET_NODE_INFO_V1() for node in nodes}


def main() -> int:
    infos = node_infos()
    lacking = sum(renew(infos, language) for language in LANGUAGES)
    for path, text in render(infos).items():
        target = ROOT / "locales" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, "utf-8")
    if lacking:
        print(f"{lacking} translations are missing. Write them into scripts/locales/*.json and run {COMMAND} again.")
    return 1 if lacking else 0


if __name__ == "__main__":
    sys.argv[1:] = []  # ComfyUI would read them
    raise SystemExit(main())
