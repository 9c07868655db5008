"""The help pages that ComfyUI opens from a node: their pictures, and those in other languages."""

import json
import re
from pathlib import Path

import make_locales
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "web" / "docs"
PICTURE = re.compile(r"!\[([^]]+)\]\(([^)]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
MOST_BYTES = 60_000
# The nodes of the quick start have a picture; the first three that a newcomer meets, a page in each language.
PICTURED = (
    "Flux2Load", "Flux2DatasetFolder", "Flux2CacheEmbeds", "Flux2CacheLatents", "Flux2Validation", "Flux2LoraTrainer",
    "Flux2CompareLoras",
)  # fmt: skip
TRANSLATED = ("Flux2Load", "Flux2DatasetFolder", "Flux2LoraTrainer")


def pages() -> list[Path]:
    return sorted(DOCS.rglob("*.md"))


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(DOCS)))
def test_pictures_are_there_and_small(page):
    """ComfyUI reads every page's addresses from web/docs on, also those of a page in a folder below it."""
    for alternative, address in PICTURE.findall(page.read_text("utf-8")):
        picture = DOCS / address
        assert picture.is_file() and picture.stat().st_size < MOST_BYTES and "nano" in alternative
        assert min(Image.open(picture).size) > 100


def test_the_nodes_of_the_quick_start_are_pictured():
    for kind in PICTURED:
        assert f"(ui/{kind}.webp)" in (DOCS / f"{kind}.md").read_text("utf-8")
    assert {path.stem for path in (DOCS / "ui").iterdir()} == set(PICTURED)


@pytest.mark.parametrize("language", make_locales.LANGUAGES)
@pytest.mark.parametrize("kind", TRANSLATED)
def test_a_page_in_another_language_has_the_nodes_title_and_inputs(pack, kind, language):
    text = (DOCS / kind / f"{language}.md").read_text("utf-8")
    words = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text("utf-8"))[kind]
    assert text.startswith(f"# {words['display_name']}\n")
    named = set(CODE.findall(text))
    infos = make_locales.infos_of([node for node in pack.NODES if node.GET_SCHEMA().node_id == kind])
    assert {name for name, _ in make_locales.inputs_of(infos[kind])} - named == set()
    english = (DOCS / f"{kind}.md").read_text("utf-8")
    assert named <= set(CODE.findall(english)) and f"(ui/{kind}.webp)" in text


def test_no_page_is_for_a_node_or_a_language_that_is_not_there(pack):
    kinds = {node.GET_SCHEMA().node_id for node in pack.NODES}
    assert {page.stem for page in DOCS.glob("*.md")} == kinds
    assert {(page.parent.name, page.stem) for page in DOCS.glob("*/*.md")} == {
        (kind, language) for kind in TRANSLATED for language in make_locales.LANGUAGES
    }
