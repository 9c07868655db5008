"""The panel of a run whose server is killed and started again on the same port: left open, and after a reload.

The server, its end, the browser and the run are real. All under --all: each server starts three times.
"""

import pytest
from browsing import WATCH, open_tab
from comfy_server import ComfyServer
from mistakes import write_files
from newest_frontend import newest_frontend
from panels import begin, graph, look, press, state, until

from flux2_train.runs.folder import RunFolder
from flux2_train.runs.live import record

pytestmark = [pytest.mark.browser, pytest.mark.server, pytest.mark.slow]
SAYS = "() => document.querySelector('.flux2-run .lost').innerText"


@pytest.fixture(scope="module", params=["pinned", "newest, vue"])
def seat(request, chromium, tmp_path_factory):
    """(page, server, name) of a frontend in one of its renderers, on a server that may be killed."""
    name = request.param
    options = ("--front-end-root", str(newest_frontend())) if "newest" in name else ()
    with ComfyServer(tmp_path_factory.mktemp("killed"), *options) as server:
        write_files(server.folder)
        context = chromium.new_context(viewport={"width": 1600, "height": 1400}, locale="en-US")
        yield open_tab(context, server, "vue" in name), server, name.replace(", ", "_")
        context.close()


@pytest.fixture
def killed(seat):
    """``killed(run)`` trains until a checkpoint is saved and kills the server: the panel's state before that."""
    page, server, _ = seat

    def kill(run):
        begin(page, *graph(run))
        press(page, "Save now")
        saved = until(page, "s.checkpoints.length > 0")
        page.wait_for_timeout(1500)  # the frontend keeps a draft of the workflow, from which it is restored
        server.process.kill()
        server.process.wait(30)
        return saved

    yield kill
    page.evaluate(WATCH)
    server.post("/interrupt", {})
    page.wait_for_function("() => window.flux2Ended")


def in_folder(server, run) -> int:
    """The last step that the run's folder knows."""
    lines, _ = record.read(RunFolder(server.folder / "output" / "flux2_train" / run))
    return [line for line in lines if line["kind"] == "steps"][-1]["step"][-1]


def test_an_open_panel_outlives_its_server(seat, killed, tmp_path):
    """It says that nobody answers, shows the run as its folder has it, and goes on when the graph is queued again."""
    page, server, name = seat
    page.evaluate("() => { window.flux2SamePage = true }")
    saved = killed("outlived")
    page.wait_for_function(f"() => ({SAYS})().includes('The server cannot be reached.')")
    away = state(page)
    assert (
        away["away"]
        and away["step"] >= saved["step"]
        and page.locator(".flux2-run .chip").inner_text() == "no connection"
    )
    press(page, "Stop and keep")
    page.locator(".flux2-run .said").get_by_text("The server cannot be reached.").wait_for()
    look(page, tmp_path, f"{name}_away")
    server.start()
    shown = until(page, "!s.away && s.status === 'killed' && !s.trains")
    assert shown["step"] == shown["points"] == in_folder(server, "outlived") >= away["step"]
    assert page.evaluate(SAYS) == "" and page.locator(".flux2-run .said").inner_text() == ""
    assert "step" not in page.locator(".flux2-shown.short").inner_text()  # no time is left of a run that has ended
    look(page, tmp_path, f"{name}_back")
    press(page, "Go on")
    went_on = until(page, f"s.trains && s.notes.length && s.step > {shown['step']}")
    assert went_on["run"] == "outlived" and went_on["points"] == went_on["step"]
    assert went_on["notes"] == [f"went on after step {saved['checkpoints'][0]}"]
    assert page.evaluate("() => window.flux2SamePage")
    look(page, tmp_path, f"{name}_went_on")


def test_a_reloaded_page_shows_the_run_and_goes_on_with_it(seat, killed, tmp_path):
    """Killed in the middle of a run: after its restart the panel shows what was trained, and Go on continues."""
    page, server, name = seat
    saved = killed("restarted")
    server.start()
    page.reload()
    shown = until(page, "s.status === 'killed' && !s.trains")
    assert shown["step"] >= saved["step"] and shown["points"] == shown["step"]
    look(page, tmp_path, f"{name}_restarted")
    press(page, "Go on")
    went_on = until(page, f"s.trains && s.notes.length && s.step > {saved['checkpoints'][0]}")
    assert went_on["run"] == "restarted" and went_on["points"] == went_on["step"]
