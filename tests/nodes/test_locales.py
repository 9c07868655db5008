"""What the nodes say in five languages: complete, of today, and with every name and number that English has."""

import json
import re
from collections import Counter
from pathlib import Path

import make_locales
import pytest

ROOT = Path(__file__).resolve().parents[2]
RUN = f"The nodes' words have changed. Run `{make_locales.COMMAND}`, and fill in what it says is missing."
TRANSLATED = make_locales.LANGUAGES
# Words with a digit, an underscore, a slash or a star, and words with a capital inside: values, files, names.
KEPT = re.compile(r"[A-Za-z0-9_.*/#=+-]*[0-9_*/#=][A-Za-z0-9_.*/#=+-]*|\b[A-Za-z]+[A-Z][A-Za-z]*\b")
QUOTED = re.compile(r"(?<!\w)'([^']+)'(?!\w)")  # and not the apostrophe of a genitive
PLACEHOLDER = re.compile(r"\{\w+\}")
SYNTAX = set("{}@|")  # which vue-i18n reads as more than text


@pytest.fixture(scope="module")
def infos(pack):
    return make_locales.infos_of(pack.NODES)


@pytest.fixture(scope="module")
def pairs(infos):
    """Every English text of nodes and JavaScript."""
    return [text for tree in make_locales.english(infos).values() for text in make_locales.said(tree)]


@pytest.fixture(scope="module")
def titles(infos):
    """The names of nodes that no sentence can hold by chance."""
    return [info["display_name"] for info in infos.values() if " " in info["display_name"]]


def leaves(tree: dict, path: tuple = ()) -> dict[tuple, str]:
    found = {}
    for name, value in tree.items():
        found |= leaves(value, (*path, name)) if isinstance(value, dict) else {(*path, name): value}
    return found


def read(path: str) -> dict:
    return leaves(json.loads((ROOT / "locales" / path).read_text("utf-8")))


def test_english_is_what_the_nodes_say(infos):
    for name, tree in make_locales.english(infos).items():
        assert json.loads((ROOT / "locales" / "en" / name).read_text("utf-8")) == tree, RUN


def test_every_input_and_output_of_every_node_has_a_name_and_every_input_a_tooltip(infos):
    words = read("en/nodeDefs.json")
    for node, info in infos.items():
        for name, _ in make_locales.inputs_of(info):
            assert words[node, "inputs", name, "name"] and words[node, "inputs", name, "tooltip"], (node, name)
        for index in range(len(info["output_name"])):
            assert words[node, "outputs", str(index), "name"]


@pytest.mark.parametrize("name", ["nodeDefs.json", "main.json"])
@pytest.mark.parametrize("language", TRANSLATED)
def test_a_language_has_the_keys_of_english(language, name):
    assert read(f"{language}/{name}").keys() == read(f"en/{name}").keys(), RUN


@pytest.mark.parametrize("language", TRANSLATED)
def test_a_language_is_written_from_its_translations_and_has_no_others(infos, language):
    assert make_locales.missing(infos, language) == [], RUN
    assert make_locales.stale(infos, language) == [], RUN
    for path, text in make_locales.render(infos).items():
        if path.startswith(f"{language}/"):
            assert (ROOT / "locales" / path).read_text("utf-8") == text, RUN


def kept(text: str) -> Counter:
    plural = text.replace("LoRAs", "LoRA")  # which other languages leave out
    return Counter(word.strip(".-") for word in KEPT.findall(plural) if word.strip(".-/"))


@pytest.mark.parametrize("language", TRANSLATED)
def test_numbers_files_and_names_are_kept(pairs, language):
    known = make_locales.translations(language)
    for english in pairs:
        if " " in english:  # a single word is a name, which is translated
            there = kept(known[english])
            assert kept(english) - there == Counter(), english
            added = there - kept(english)  # a language may say RAM where English has words, but no other number
            assert not [word for word in added if any(letter.isdecimal() for letter in word)], english
            assert sorted(PLACEHOLDER.findall(english)) == sorted(PLACEHOLDER.findall(known[english])), english


@pytest.mark.parametrize("language", TRANSLATED)
def test_quoted_values_and_widgets_are_kept(pairs, language):
    known = make_locales.translations(language)
    assert QUOTED.findall("a LoRA's scale, all 'auto' and 'as in file', adapters' inputs") == ["auto", "as in file"]
    for english in pairs:
        lost = [quoted for quoted in QUOTED.findall(english) if f"'{quoted}'" not in known[english]]
        assert lost == [], english


@pytest.mark.parametrize("language", TRANSLATED)
def test_a_node_has_one_name_wherever_it_is_named(pairs, titles, language):
    known = make_locales.translations(language)
    for english in pairs:
        for title in titles:
            if title in english:
                assert known[title] in known[english], (title, english)


@pytest.mark.parametrize("language", ["en", *TRANSLATED])
def test_the_frontend_reads_no_syntax_into_a_nodes_text(language):
    assert [path for path, text in read(f"{language}/nodeDefs.json").items() if SYNTAX & set(text or "")] == []


@pytest.mark.parametrize("language", TRANSLATED)
def test_descriptions_and_tooltips_are_translated(pairs, language):
    known = make_locales.translations(language)
    assert [english for english in pairs if english.endswith(".") and known[english] == english] == []


def test_a_changed_text_is_missing_and_the_old_one_stale(infos):
    changed = json.loads(json.dumps(infos))
    changed["Flux2Load"]["description"] = "Something new."
    old = infos["Flux2Load"]["description"]
    assert make_locales.missing(changed, "es") == ["Something new."] and make_locales.stale(changed, "es") == [old]
    assert "Something new." not in make_locales.render(changed)["es/nodeDefs.json"]


def test_what_javascript_says_goes_through_words():
    assert {"Stopped.", "fill in the graph", "options"} <= set(make_locales.web_texts())
