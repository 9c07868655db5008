"""A hash of plain values that does not depend on the order of keys."""

from __future__ import annotations

import hashlib
import json


def canonical_hash(value: object) -> str:
    """Hash of a value of JSON types, the same for any order of keys: blake2b, 128 bits, hexadecimal."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
