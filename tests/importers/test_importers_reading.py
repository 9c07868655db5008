"""Files of others are bounded in size, depth and number of values, and nothing in them is run."""

import json
import sys

import pytest

from flux2_train.errors import UserError
from flux2_train.importers import importing, reading

DEEP = reading.MAX_DEPTH + 5


def error(path) -> str:
    with pytest.raises(UserError) as raised:
        importing.import_file(path)
    assert path.name in str(raised.value)
    return str(raised.value)


def write(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("name, content, words", [
    ("a.json", "{", "cannot be read"), ("a.json", b"\xff\xfe", "no text in UTF-8"),
    ("a.json", "[" * 100_000 + "]" * 100_000, "nested too deeply"),
    ("a.json", '{"a":' * DEEP + "1" + "}" * DEEP, "nested too deeply; 40 levels"),
    ("a.json", json.dumps({str(n): n for n in range(reading.MAX_LEAVES + 1)}), "more than 20000 values"),
    ("a.yaml", "a: [", "cannot be read"),
    ("a.yaml", "[" * 3000, "nested too deeply"), ("a.yaml", "- " * 3000 + "a", "nested too deeply"),
    ("a.yaml", "a: !!python/object/apply:os.system ['touch ran']", "could not determine a constructor"),
    ("a.yaml", "a: &a [*a]", "nested too deeply"),
    ("a.yaml", "a: &a [x, x]\n" + "\n".join(f"{chr(98 + n)}: &{chr(98 + n)} [*{chr(97 + n)}, *{chr(97 + n)}]"
                                         for n in range(20)), "more than 20000 values"),
    ("a.pt", "x", "ends in '.pt'; what can be read ends in .json"), ("a", "x", "ends in ''"),
    ("a.json", b" " * (reading.MAX_BYTES + 1), f"at most {reading.MAX_BYTES} of its kind"),
    ("a.yaml", b" " * (reading.MAX_YAML_BYTES + 1), f"at most {reading.MAX_YAML_BYTES} of its kind"),
])  # fmt: skip
def test_what_cannot_be_read_is_said_in_one_sentence(tmp_path, monkeypatch, name, content, words):
    import re

    monkeypatch.chdir(tmp_path)
    message = error(write(tmp_path, name, content))
    assert re.search(words, message) and len(message) < 500 and "\n" not in message
    assert not (tmp_path / "ran").exists()


def test_a_file_that_is_not_there_is_named(tmp_path):
    assert "There is no file" in error(tmp_path / "none.json")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="this Python reads no TOML")
@pytest.mark.parametrize("content", ["a = ", "a = " + "[" * 5000, "a" + ".a" * 5000 + " = 1"])
def test_toml_that_is_broken_or_deep_is_refused(tmp_path, content):
    message = error(write(tmp_path, "a.toml", content))
    assert ("cannot be read" if content == "a = " else "nested too deeply") in message


def test_every_plain_value_has_its_whole_key():
    values = {"a": {"b": [{"c": 1}, {"c": [1, 2]}], "d": []}, "e": {}, "f": None, "g": [[1], 2]}
    assert reading.leaves(values) == {
        "a.b[0].c": 1, "a.b[1].c": [1, 2], "a.d": [], "e": {}, "f": None, "g[0]": [1], "g[1]": 2,
    }  # fmt: skip


def test_a_named_file_is_opened_only_beside_the_configuration(tmp_path):
    folder = tmp_path / "config"
    (folder / "below").mkdir(parents=True)
    config = write(folder, "config.json", "{}")
    for place in ("data.json", "below/data2.json"):
        write(folder, place, "[]")
    outside = write(tmp_path, "secret.json", "[]")
    (folder / "link.json").symlink_to(outside)
    assert reading.beside(config, "data.json") == (folder / "data.json").resolve()
    assert reading.beside(config, "other/folder/data.json") == (folder / "data.json").resolve()
    assert reading.beside(config, "below/data2.json") == (folder / "below" / "data2.json").resolve()
    for named in ("../secret.json", str(outside), "link.json", "none.json", "config.json", "", None, 7, ["data.json"]):
        assert reading.beside(config, named) is None, named
