"""README in other languages says the same: commands, code, links, nodes, files and figures are those of README.md."""

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OTHERS = ("README.es.md", "README.hi.md")
FENCE = re.compile(r"^```.*?^```", re.M | re.S)
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)]+)\)")
HEADING = re.compile(r"^#+ ", re.M)
NUMBER = re.compile(r"\d+(?:\.\d+)*")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def links(text: str) -> Counter:
    """Where a README points, except to its other languages."""
    return Counter(link for link in LINK.findall(text) if not re.fullmatch(r"README(\.\w+)?\.md", link))


def rows(text: str) -> list[list[str]]:
    """The cells of every table row, without the lines below heads."""
    lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("|---")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def heads(text: str) -> set[int]:
    """The numbers of the rows that head a table."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    marks = [number for number, line in enumerate(lines) if line.startswith("|---")]
    return {mark - 1 - before for before, mark in enumerate(marks)}


@pytest.mark.parametrize("name", OTHERS)
def test_commands_and_code_are_the_same(name):
    english, other = read("README.md"), read(name)
    assert FENCE.findall(other) == FENCE.findall(english) != []
    assert Counter(CODE.findall(FENCE.sub("", other))) == Counter(CODE.findall(FENCE.sub("", english)))


@pytest.mark.parametrize("name", OTHERS)
def test_links_are_the_same_and_lead_somewhere(name):
    other = links(read(name))
    assert other == links(read("README.md"))
    assert [link for link in other if not link.startswith("http") and not (ROOT / link).exists()] == []


@pytest.mark.parametrize("name", OTHERS)
def test_rows_are_about_the_same_things(name):
    """Templates, nodes and flavours keep their names, in the same order; the rows of "Does it fit?" are the same."""
    english, other = rows(read("README.md")), rows(read(name))
    head = heads(read("README.md"))
    assert head == heads(read(name)) and len(head) == 4
    firsts = [row[0] for number, row in enumerate(english) if number not in head]
    assert [row[0] for number, row in enumerate(other) if number not in head] == firsts
    assert {"LoRA Trainer", "klein-4b", "style"} < set(firsts)
    assert [row for row in other if len(row) == 7] == [row for row in english if len(row) == 7] != []
    assert [Counter(NUMBER.findall(" ".join(row))) for row in other] == [
        Counter(NUMBER.findall(" ".join(row))) for row in english
    ]


@pytest.mark.parametrize("name", OTHERS)
def test_sections_and_numbers_are_the_same(name):
    english, other = read("README.md"), read(name)
    assert len(HEADING.findall(other)) == len(HEADING.findall(english)) >= 8
    assert Counter(NUMBER.findall(other)) == Counter(NUMBER.findall(english))


def test_each_readme_links_to_the_others():
    names = {"README.md", *OTHERS}
    for name in names:
        top = read(name).split("\n\n", 2)[1]
        assert set(LINK.findall(top)) == names - {name}
