"""Identity of plain values."""

from __future__ import annotations

import hashlib
import json


def canonical_hash(value: object) -> str:
    """Identity of a value of plain types, whatever order its mappings have: blake2b, 128 bits, hexadecimal."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
