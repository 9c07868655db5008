import pytest
from browsing import browser
from curating import dialog, folder, tab  # noqa: F401  fixtures
from data_routes import client, get, place, post, routes  # noqa: F401  fixtures
from runs_tab import opened, runs  # noqa: F401  fixtures


@pytest.fixture(scope="module")
def chromium():
    """A browser of the module's own."""
    with browser() as started:
        yield started
