"""Trainings queued from the tab FLUX.2 runs, in ComfyUI's own frontend: variations of a run and of the open graph.

On the frontend that ComfyUI pins, and under --all on the newest one. Pictures are kept in the test's folder.
"""

import copy
import json

import pytest
from axe import serious_findings
from browsing import load, photograph, says
from made_runs import make_run
from mistakes import GRAPH, TRAINER, write_files
from runs_tab import detail, open_runs, option

from flux2_train.runs.folder import RUNNING, RunFolder

pytestmark = [pytest.mark.browser, pytest.mark.server, pytest.mark.long]
# It leaves out what shows a run: the server may have begun the first training already, and the node then shows it.
WIDGETS = """id => app.graph.getNodeById(Number(id)).widgets.map(each => [each.name, each.value])
    .filter(([name]) => !name.startsWith('flux2_'))"""
FINISHED = """count => [...document.querySelectorAll('.flux2-runs .run .chip')]
    .filter(each => each.textContent === 'finished').length === count"""


def test_variations_are_queued_ordered_and_removed(opened, runs, tmp_path):
    page, server, name = opened
    make_run(runs, "one")
    open_runs(page, 1)
    option(page, "one").click()
    detail(page, "Run one").get_by_role("button", name="Queue variations …").click()
    page.get_by_label("Values of setting 1, with commas between").fill("8, 16")
    page.get_by_role("combobox", name="Setting 2").select_option("learning_rate")
    page.get_by_label("Values of setting 2, with commas between").fill("1e-4, 2e-4")
    photograph(page, tmp_path, f"{name}_vary")
    assert serious_findings(page, ".flux2-ask") == []
    page.get_by_role("button", name="Add to the queue").click()
    says(page, "4 jobs wait.")
    page.get_by_text("Queue: 4 waiting (paused)").wait_for()
    first = "one, rank 8, learning_rate 1e-4"
    page.get_by_role("button", name=f"Later: {first}").click()
    page.wait_for_function(
        "() => document.querySelector('.queue li:nth-child(2)').textContent.includes('8, learning_rate 1')"
    )
    page.get_by_role("button", name=f"Remove: {first}").click()
    page.get_by_text("Queue: 3 waiting (paused)").wait_for()
    photograph(page, tmp_path, f"{name}_queue")
    assert serious_findings(page, ".flux2-runs") == []
    left = [job["title"] for job in server.get("/flux2_train/queue")["jobs"]]
    assert left == [
        f"one, rank {rank}, learning_rate {rate}" for rank, rate in ((8, "2e-4"), (16, "1e-4"), (16, "2e-4"))
    ]


OVERTAKEN = """async () => {
    const { api } = window.comfyAPI.api, names = await (await api.fetchApi('/extensions')).json()
    const { QueueBox } = await import(api.fileURL(names.find(each => each.endsWith('/runs/queue.js'))))
    const box = new QueueBox(), job = (title, state) => ({ name: title, title, state, why: '' })
    const rows = () => [...box.jobs.children]
    box.take(2, { paused: false, jobs: [job('a', 'running'), job('b', 'waiting')] })
    const [first] = rows()
    box.take(1, { paused: true, jobs: [] })
    const kept = rows().length
    box.take(3, { paused: false, jobs: [job('a', 'running'), job('b', 'paused')] })
    return [kept, rows()[0] === first, rows()[1].querySelector('.chip').textContent, box.title.textContent]
}"""


def test_an_answer_about_the_queue_that_was_overtaken_is_left_out_and_rows_stay(opened):
    page, _, _ = opened
    assert page.evaluate(OVERTAKEN) == [2, True, "paused", "Queue: 1 running, 1 paused"]


def test_the_row_of_a_run_that_trains_is_not_replaced_under_the_mouse(opened, runs):
    page, _, _ = opened
    folder = RunFolder(make_run(runs, "one", 100, status=RUNNING))
    with folder.held():
        open_runs(page, 1)
        row = option(page, "one").element_handle()
        folder.note(step=777, total=1000)
        page.wait_for_function("row => row.textContent.includes('777')", arg=row)
        assert row.evaluate("row => row.isConnected")


def test_the_open_graph_is_queued_with_other_values(opened, runs, tmp_path):
    """Each training has a name and a workflow that say what differs, and the graph on the canvas stays as it is."""
    page, server, name = opened
    write_files(server.folder)
    open_runs(page, 0)
    vary = page.get_by_role("button", name="Vary the open graph …")
    page.evaluate("() => app.graph.clear()")
    vary.click()
    says(page, "The open graph has no LoRA Trainer.")
    prompt = copy.deepcopy(GRAPH)
    prompt[TRAINER]["inputs"].update(name="varied", steps=1)
    load(page, prompt)
    before = page.evaluate(WIDGETS, TRAINER)

    def ask(values):
        vary.click()
        page.get_by_label("Values of setting 1, with commas between").fill(values)
        page.get_by_role("button", name="Add to the queue").click()

    ask("1, many")
    says(page, "many is no number, and rank must be one.")
    vary.click()
    choices = page.get_by_role("combobox", name="Setting 1").locator("option").all_inner_texts()
    assert choices[:5] == ["nothing more", "rank", "alpha", "learning_rate", "steps"] and "folder" in choices
    assert not {"name", "resume", "control_after_generate"} & set(choices)
    photograph(page, tmp_path, f"{name}_vary_graph")
    assert serious_findings(page, ".flux2-ask") == []
    page.keyboard.press("Escape")
    ask("1, 2")
    says(page, "2 trainings are queued.")
    assert page.evaluate(WIDGETS, TRAINER) == before
    page.wait_for_function(FINISHED, arg=2)
    for rank in (1, 2):
        folder = RunFolder(runs / f"varied rank {rank}")
        assert json.loads(folder.job.read_text())["training"]["rank"] == rank
        trainers = [
            each for each in json.loads(folder.workflow.read_text())["nodes"] if each["type"].endswith("Trainer")
        ]
        assert folder.name in trainers[0]["widgets_values"]
