"""docs/importing.md is what the rules say, and the settings that it names exist."""

import re
from pathlib import Path

import pytest

from flux2_train.errors import UserError
from flux2_train.importers import draft, importing
from flux2_train.importers.document import CONVENTIONS, markdown

ROOT = Path(__file__).resolve().parents[2]
RULES = [(name, rule) for name, tables in importing.documents().items() for rules in tables.values() for rule in rules]


def test_the_document_is_what_the_rules_say():
    text = (ROOT / "docs" / "importing.md").read_text(encoding="utf-8")
    assert markdown() == text, "python -m flux2_train import --keys > docs/importing.md"


def test_every_rule_is_in_the_document():
    text = markdown()
    assert all(f"`{rule.key}`" in text for _, rule in RULES) and len(RULES) > 1000
    assert all(" | ".join(row) in text for row in CONVENTIONS)


def places(ours: str) -> list[str]:
    """The settings that a rule names: ``a.b, c`` are a.b and a.c."""
    found: list[str] = []
    for part in ours.split(", "):
        found.append(part if re.match(r"[a-z]+\.", part) else f"{found[-1].rpartition('.')[0]}.{part}")
    return found


@pytest.mark.parametrize("ours", sorted({rule.ours for _, rule in RULES if re.match(r"[a-z_]+\.[a-z]", rule.ours)}))
def test_the_settings_that_a_rule_names_exist(ours):
    for place in places(ours):
        try:
            draft.checked(place, object())
        except draft.NotHere:
            pass
        except UserError as error:
            pytest.fail(f"{place}: {error}")


@pytest.mark.parametrize("name", importing.documents())
def test_a_key_has_one_rule_in_its_table(name):
    for rules in importing.documents()[name].values():
        keys = [rule.key for rule in rules]
        assert len(set(keys)) == len(keys), sorted({key for key in keys if keys.count(key) > 1})
