"""The tab FLUX.2 runs in a browser: fixtures of a page and of an empty folder of runs, opened, found and looked at."""

import shutil

import pytest
from browsing import open_tab

SLOW = pytest.mark.slow


@pytest.fixture(scope="module", params=["pinned", pytest.param("newest", marks=SLOW)])
def opened(request, chromium):
    """(page, server, name) of a frontend."""
    server = request.getfixturevalue("newest_server" if request.param == "newest" else "server")
    context = chromium.new_context(viewport={"width": 1500, "height": 950}, locale="en-US")
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    yield open_tab(context, server, False), server, request.param
    context.close()
    server.post("/settings", {"Comfy.ColorPalette": "dark"})


@pytest.fixture
def runs(opened):
    """The server's folder of runs, empty, and an empty queue; the tab is closed afterwards."""
    page, server, _ = opened
    queue = server.folder / "user" / "__flux2_train" / "queue"
    folder = server.folder / "output" / "flux2_train"
    for each in (queue, folder):
        shutil.rmtree(each, ignore_errors=True)
    folder.mkdir(parents=True)
    queue.mkdir(parents=True)
    (queue / "paused").touch()  # the server must not begin to train what a test adds
    yield folder
    if page.locator(".flux2-runs .list").count():
        press_tab(page)
    for each in (queue, folder):
        shutil.rmtree(each, ignore_errors=True)


def press_tab(page):
    page.get_by_role("button", name="FLUX.2 runs").first.click()


def open_runs(page, count):
    """Open the tab and wait for that many runs to be listed."""
    press_tab(page)
    page.wait_for_function(
        "count => document.querySelector('.flux2-runs .head .dim')?.textContent.startsWith(`${count} `)", arg=count
    )
    page.wait_for_function("() => document.querySelector('.flux2-runs .run .what, .flux2-runs .empty')")


def option(page, name):
    return page.get_by_role("option").filter(has=page.get_by_text(name, exact=True))


def detail(page, name):
    """The open panel of a run."""
    region = page.locator(f".flux2-run-detail[aria-label='{name}']")
    region.wait_for()
    return region
