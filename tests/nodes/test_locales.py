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

SPOKEN = ("panel", "data", "runs")  # folders of web/ whose texts a person reads
HOLE = re.compile(r"\$\{(?:[^{}`]|`(?:[^`\\]|\\.)*`|\{[^{}]*\})*\}")
LITERAL = re.compile(rf'//[^\n]*|"(?:[^"\\\n]|\\.)*"|`(?:{HOLE.pattern}|[^`\\]|\\.)*`')
SHOWN = re.compile(r'(?:button\(|(?:\b(?:text|textContent|title|placeholder|alt|label)|"aria-label")(?::| =) )$')
# What may have a space: by what stands before it, and in whole.
NOT_SHOWN = re.compile(r"(?:className|font|style|STYLE|clipPath|left)(?::| =) $|(?:matches|closest)\($|this\[$")
NAMES_INSIDE = {"no caption", "the caption is empty", "not learnable"}  # the server's; web/data/marks.js has ours
UNITS_AND_KEYS = {"MB", "GB", "px", "Escape", "Enter"}


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
    found = set(make_locales.web_texts())
    assert {"Stopped.", "fill in the graph", "options", "Pause", "Search and replace", "FLUX.2 runs"} <= found


def outside_words(source: str) -> list[str]:
    """Literals of a JavaScript source that a person may read and that ``words`` does not translate."""
    found = []
    for literal in LITERAL.finditer(source):
        text, before = literal[0], source[max(0, literal.start() - 40) : literal.start()]
        if text.startswith("//"):
            continue
        for hole in HOLE.findall(text) if text[0] == "`" else []:
            found += outside_words(hole[2:-1])
        bare = HOLE.sub("", text)[1:-1]
        read = " " in bare or SHOWN.search(before) or re.fullmatch("[A-Z][a-z]+", bare)
        known = NOT_SHOWN.search(before) or bare.strip(" ·()") in NAMES_INSIDE | UNITS_AND_KEYS
        if read and re.search("[A-Za-z]{2}", bare) and not known and not before.endswith("words("):
            found.append(bare)
    return found


@pytest.mark.parametrize("folder", SPOKEN)
def test_no_text_of_panel_windows_and_tab_stands_outside_words(folder):
    paths = sorted((ROOT / "web" / folder).glob("*.js"))
    loose = {path.name: outside_words(path.read_text("utf-8")) for path in paths}
    assert len(paths) > 5 and {name: texts for name, texts in loose.items() if texts} == {}


def test_whoever_calls_words_imports_it():
    """A module that does not fails when the text is shown, which may be in a window that no test opens."""
    sources = {
        path: path.read_text("utf-8") for path in sorted((ROOT / "web").rglob("*.js")) if "vendor" not in path.parts
    }
    calling = {path.name: text for path, text in sources.items() if re.search(r"\bwords\(", text)}
    assert len(calling) > 20
    known = re.compile(r"import \{[^}]*\bwords\b[^}]*\} from|export function words")
    assert [name for name, text in calling.items() if not known.search(text)] == []


def test_a_text_outside_words_is_found():
    source = """
        button("log"); button(words("log")); el("p", { className: "row wide", title: "next" }); // not a "text here"
        say(`${count} of ${total}`); say(words("{count} of {total}")); key("ArrowUp"); say("Cancel"); say(`${left} px`);
        say(`${word} ${paused ? "in a hole" : `${"deeper in it"}`}`)
    """
    assert outside_words(source) == ["log", "next", " of ", "Cancel", "in a hole", "deeper in it"]
