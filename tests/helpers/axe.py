"""axe-core on a part of a page: what it finds that keeps people with a screen reader or a keyboard out.

It is fetched once from npm into the folder .cache, which git ignores; without it these checks are skipped.
"""

from __future__ import annotations

import io
import subprocess
import tarfile
from functools import cache
from pathlib import Path

import pytest

VERSION = "4.14.1"
KEPT = Path(__file__).resolve().parents[2] / ".cache" / f"axe-{VERSION}.min.js"
RUN = """async selector => {
    const found = await axe.run({ include: [[selector]] }, {})
    if (!found.passes.length) throw new Error(`axe-core looked at nothing below ${selector}`)
    const place = node => `${node.html.slice(0, 160)} ${node.failureSummary}`
    return found.violations.filter(each => ['serious', 'critical'].includes(each.impact))
        .map(each => `${each.id}: ${each.help}: ${each.nodes.map(place).join(' | ')}`)
}"""


@cache
def script() -> str:
    """axe-core as one script. Skips the test where it cannot be fetched."""
    if not KEPT.is_file():
        try:
            packed = subprocess.run(["npm", "pack", f"axe-core@{VERSION}", "--silent"], cwd=_folder(), check=True,
                                    capture_output=True, timeout=120)  # fmt: skip
            archive = KEPT.parent / packed.stdout.decode().split()[-1]
            with tarfile.open(fileobj=io.BytesIO(archive.read_bytes())) as files:
                text = files.extractfile("package/axe.min.js").read()
            archive.unlink()
        except (OSError, subprocess.SubprocessError, KeyError, IndexError) as error:
            pytest.skip(f"axe-core {VERSION} cannot be fetched from npm: {error}")
        KEPT.write_bytes(text)
    return KEPT.read_text(encoding="utf-8")


def _folder() -> Path:
    KEPT.parent.mkdir(exist_ok=True)
    return KEPT.parent


def serious_findings(page, selector: str) -> list[str]:
    """The serious and critical findings below ``selector``, each in one line."""
    if not page.evaluate("() => Boolean(window.axe)"):
        page.evaluate(script())
    return page.evaluate(RUN, selector)
