"""The tab FLUX.2 runs in ComfyUI's own frontend, with a mouse and with the keyboard alone, light and dark.

On the frontend that ComfyUI pins, and under --all on the newest one. Pictures are kept in the test's folder.
"""

import json
import shutil

import pytest
from axe import serious_findings
from browsing import clear_toasts, photograph, says
from made_runs import make_run
from runs_tab import detail, open_runs, option, press_tab

from flux2_train.runs.folder import RUNNING, STOPPED, RunFolder

pytestmark = [pytest.mark.browser, pytest.mark.server, pytest.mark.long]
HOSTILE = "img src=x onerror=window.flux2Hacked=1"  # a file's name has no < and no >
MARKUP = "<img src=x onerror=window.flux2Hacked=1>"
SLOW = pytest.mark.slow
COLOURS = ("teal", "olive", "brown", "purple", "navy")


def five_runs(folder):
    """A finished, a longer, a stopped, a killed and a running run; the lock of the last one is given back."""
    make_run(folder, "vorn", 400, rank=16, color=COLOURS[0])
    make_run(folder, "vorn_2", 1000, rank=32, preservation=1.0, color=COLOURS[1], scale=1.2)
    make_run(folder, "blueprint style", 620, status=STOPPED, color=COLOURS[2])
    make_run(folder, "robot", 300, status=RUNNING, color=COLOURS[3])
    running = RunFolder(make_run(folder, "edit-recolour", 200, status=RUNNING, color=COLOURS[4]))
    (running.path.parent / "vorn" / "log.txt").write_text("2026-01-02 03:04:05Z begins in vorn\n")
    return running


def states(page):
    rows = page.locator(".flux2-runs .run").all()
    return {row.locator("b").inner_text(): row.locator(".chip").inner_text() for row in rows}


@pytest.mark.parametrize("palette", ["dark", "light"])
def test_runs_are_listed_opened_and_compared(opened, runs, tmp_path, palette):
    page, _, name = opened
    page.evaluate("id => app.extensionManager.setting.set('Comfy.ColorPalette', id)", palette)
    running = five_runs(runs)
    with running.held():
        open_runs(page, 5)
        assert states(page) == {"vorn": "finished", "vorn_2": "finished", "blueprint style": "stopped",
                                "robot": "killed", "edit-recolour": "running"}  # fmt: skip
        pictures = page.locator(".flux2-runs .run img")
        page.wait_for_function(
            "() => [...document.querySelectorAll('.flux2-runs .run img')].every(i => i.naturalWidth === 96)"
        )
        assert pictures.count() == 5
        option(page, "vorn").click()
        panel = detail(page, "Run vorn")
        panel.locator("canvas").wait_for()
        page.wait_for_function(
            "() => [...document.querySelectorAll('.flux2-run-detail .thumb img')].every(i => i.naturalWidth)"
        )
        assert panel.locator(".thumb").all_inner_texts() == ["base", "step 0", "step 400"]
        panel.get_by_text("Log", exact=True).click()
        assert "begins in vorn" in panel.locator("pre").inner_text()
        photograph(page, tmp_path, f"{name}_{palette}_one")
        assert serious_findings(page, ".flux2-runs") == []
        panel.get_by_role("button", name="Compare …").click()
        page.get_by_role("combobox", name="with").select_option("vorn_2")
        page.get_by_role("button", name="Compare", exact=True).click()
        both = detail(page, "vorn against vorn_2")
        both.locator("canvas").wait_for()
        assert "rank 16 / 32" in both.locator(".differs").inner_text()
        page.wait_for_timeout(300)
        photograph(page, tmp_path, f"{name}_{palette}_two")
        assert serious_findings(page, ".flux2-runs") == []
        option(page, "edit-recolour").click()
        clear_toasts(page)  # the same words may still be there from the other palette
        detail(page, "Run edit-recolour").get_by_role("button", name="Stop and keep").click()
        says(page, "ends after the step in progress")
        assert running.stop.exists()


def focused(page):
    """The role of what the keyboard is in."""
    return page.evaluate("() => document.activeElement.getAttribute('role')")


def search_five(page, runs, word) -> None:
    """Type into the search of a list of five runs, of which two are found."""
    five_runs(runs)
    open_runs(page, 5)
    page.get_by_role("searchbox", name="Search runs").focus()
    page.keyboard.type(word)
    page.wait_for_function("() => document.querySelectorAll('.flux2-runs .run').length === 2")


def test_the_keyboard_alone_finds_compares_enlarges_and_closes(opened, runs):
    page, _, _ = opened
    search_five(page, runs, "vorn")
    for _ in range(5):  # the queue stands between
        page.keyboard.press("Tab")
        if focused(page) == "listbox":
            break
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    page.locator(".flux2-run-detail h3").wait_for()
    page.keyboard.press("ArrowDown")
    page.keyboard.press(" ")
    page.locator(".flux2-run-detail .differs").wait_for()
    page.locator(".flux2-run-detail .close").focus()
    page.keyboard.press("Escape")
    page.locator(".flux2-run-detail").wait_for(state="detached")
    assert focused(page) == "listbox"
    page.keyboard.press("Enter")
    page.locator(".flux2-run-detail .thumb").last.focus()
    page.keyboard.press("Enter")
    page.get_by_text("3 of 3").wait_for()
    page.keyboard.press("ArrowLeft")
    page.get_by_text("2 of 3").wait_for()
    page.keyboard.press("Escape")
    page.locator(".flux2-ask").wait_for(state="detached")


def test_who_leaves_the_search_is_not_moved_back_to_the_top(opened, runs):
    """The list is asked for a moment after the last key, or as soon as the field is left."""
    page, _, _ = opened
    search_five(page, runs, "vor")
    page.keyboard.type("n")
    page.get_by_role("listbox", name="Runs").focus()
    page.keyboard.press("End")
    page.wait_for_timeout(500)  # longer than the list waits for the next key
    assert page.evaluate("() => document.activeElement.getAttribute('aria-activedescendant')") == "flux2-run-1"


def test_a_run_that_is_opened_comes_into_an_empty_panel(opened, runs):
    """Until the server has answered, the panel shows nothing of the run that was open before."""
    page, _, _ = opened
    make_run(runs, "one"), make_run(runs, "two")
    open_runs(page, 2)
    option(page, "one").click()
    detail(page, "Run one")
    page.locator(".flux2-run-detail .close").click()
    answers = []
    page.route("**/flux2_train/runs/details*", lambda route: answers.append(route))
    option(page, "two").click()
    page.locator(".flux2-run-detail").wait_for(state="attached")
    assert page.locator(".flux2-run-detail").inner_text() == ""
    answers[0].continue_()
    page.unroute("**/flux2_train/runs/details*")
    detail(page, "Run two")


def test_a_run_is_deleted_after_a_question(opened, runs, tmp_path):
    page, _, name = opened
    make_run(runs, "one"), make_run(runs, "two")
    open_runs(page, 2)
    option(page, "one").click()
    delete = detail(page, "Run one").get_by_role("button", name="Delete …")
    delete.click()
    photograph(page, tmp_path, f"{name}_delete")
    page.locator(".flux2-ask").get_by_role("button", name="Cancel").click()
    assert (runs / "one").exists()
    delete.click()
    assert serious_findings(page, ".flux2-ask") == []
    page.locator(".flux2-ask button.danger").click()
    page.wait_for_function("() => document.querySelectorAll('.flux2-runs .run').length === 1")
    assert not (runs / "one").exists() and (runs / "two").exists()


def test_a_runs_workflow_and_job_file_come_back(opened, runs):
    page, _, _ = opened
    path = make_run(runs, "one")
    page.evaluate("() => { app.graph.clear(); app.graph.add(LiteGraph.createNode('Flux2LoraTrainer')) }")
    workflow = page.evaluate("() => app.graph.serialize()")
    (path / "workflow.json").write_text(json.dumps(workflow))
    page.evaluate("() => app.graph.clear()")
    open_runs(page, 1)
    option(page, "one").click()
    panel = detail(page, "Run one")
    panel.get_by_role("button", name="Copy job file").click()
    says(page, "The job file is in the clipboard")
    assert page.evaluate("() => navigator.clipboard.readText()") == (path / "job.json").read_text()
    panel.get_by_role("button", name="Load into the graph").click()
    page.wait_for_function("() => app.graph._nodes.some(node => node.type === 'Flux2LoraTrainer')")


def test_a_finished_run_without_a_graph_goes_on_through_the_queue(opened, runs):
    page, server, _ = opened
    make_run(runs, "one", 100)
    open_runs(page, 1)
    option(page, "one").click()
    detail(page, "Run one").get_by_role("button", name="Go on for more steps …").click()
    page.get_by_label("steps in all").fill("300")
    page.get_by_role("button", name="Go on", exact=True).last.click()
    says(page, "goes on to 300 steps")
    assert [job["title"] for job in server.get("/flux2_train/queue")["jobs"]] == ["one, steps 300"]


def test_a_run_with_a_record_is_shown_in_the_panel_of_lora_trainer(opened, runs, tmp_path):
    page, _, name = opened
    path = make_run(runs, "one", 100)
    steps = {
        "kind": "steps",
        "first": 1,
        "total": 100,
        "loss": [0.4, 0.3, 0.2],
        "smoothed": [0.4, 0.35, 0.3],
        "rate": 1e-4,
    }
    lines = [{"kind": "began", "at": 0, "total": 100}, steps, {"kind": "ended", "status": "finished", "why": ""}]
    (path / "record.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    open_runs(page, 1)
    option(page, "one").click()
    panel = detail(page, "Run one").locator("section.flux2-run")
    panel.locator("canvas").first.wait_for()
    assert detail(page, "Run one").locator(".holder > .curves").count() == 0  # one chart, the panel's
    page.wait_for_timeout(500)
    photograph(page, tmp_path, f"{name}_panel")


def test_markup_in_names_prompts_and_reasons_is_text(opened, runs):
    page, _, _ = opened
    path = make_run(runs, HOSTILE, status="failed", targets="all")
    RunFolder(path).note(why=MARKUP, lora=MARKUP)
    job = json.loads((path / "job.json").read_text())
    job["training"]["recipe"], job["dataset"][0]["trigger"] = MARKUP, MARKUP
    (path / "job.json").write_text(json.dumps(job))
    (path / "log.txt").write_text(MARKUP)
    other = make_run(runs, "other")
    open_runs(page, 2)
    option(page, HOSTILE).click()
    panel = detail(page, f"Run {HOSTILE}")
    assert panel.locator(".why").inner_text() == MARKUP and panel.locator("pre").text_content() == MARKUP
    panel.get_by_role("button", name="Delete …").click()
    assert MARKUP in page.locator(".flux2-ask").inner_text()
    page.keyboard.press("Escape")
    option(page, "other").click(modifiers=["Control"])
    page.locator(".flux2-run-detail table").get_by_text(MARKUP).first.wait_for()
    assert not page.evaluate("() => window.flux2Hacked") and other.exists()
    assert page.locator(".flux2-runs img[src='x'], .flux2-ask img").count() == 0


WATCH_FOR_ROWS = """() => {
    window.flux2Shown = new Promise(done => {
        const look = () => document.querySelectorAll('.flux2-runs .run .what').length > 8
            ? done(performance.now()) : requestAnimationFrame(look)
        look()
    })
}"""
FRAMES = """async () => {
    const list = document.querySelector('.flux2-runs .list'), gaps = []
    list.scrollTop = 0
    let last = performance.now()
    for (let frame = 0; frame < 120; frame += 1) {
        await new Promise(requestAnimationFrame)
        const now = performance.now()
        gaps.push(now - last)
        last = now
        list.scrollTop += 290
    }
    return gaps
}"""


@pytest.mark.slow  # tests beside it would be measured too
def test_500_runs_are_there_at_once_and_scroll_freely(opened, runs):
    page, _, _ = opened
    make_run(runs, "run_000", 200)
    for number in range(1, 500):
        shutil.copytree(runs / "run_000", runs / f"run_{number:03d}")
    seconds = []
    for _ in range(3):  # other programs on a busy machine hold it up
        page.evaluate(WATCH_FOR_ROWS)
        began = page.evaluate("() => performance.now()")
        press_tab(page)
        seconds.append((page.evaluate("() => window.flux2Shown") - began) / 1000)
        press_tab(page)
    press_tab(page)
    page.locator(".flux2-runs .run .what").first.wait_for()
    longest = min(max(page.evaluate(FRAMES)) for _ in range(3))  # other programs on a busy machine hold frames up too
    drawn = page.locator(".flux2-runs .run").count()
    page.wait_for_function(
        "() => [...document.querySelectorAll('.flux2-runs .run')].every(row => row.querySelector('.what'))"
    )
    print(f"first screens {seconds} s; frames of scrolling: longest {longest:.0f} ms; {drawn} rows are elements")
    assert min(seconds) < 2 and drawn < 40 and longest < 100
