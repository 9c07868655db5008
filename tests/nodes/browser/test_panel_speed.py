"""The panel keeps the page smooth at 1,000 points a second, and shows a step within milliseconds.

For the first, lines like those of a run are given to the page as ComfyUI's websocket gives them; all else is the real
frontend. For the second, a real server trains.
"""

import json
import time
from pathlib import Path
from statistics import median, quantiles

import pytest
from browsing import open_tab
from comfy_server import ComfyServer
from mistakes import DATA, write_files
from panels import begin, graph, look, until

from flux2_train.runs.folder import RunFolder

pytestmark = [pytest.mark.browser, pytest.mark.server, pytest.mark.slow]  # tests beside it would be measured too
RATE, MESSAGES = 1000, 4  # points and messages a second
# Frame times in ms over some seconds, while ``send`` is called at every message's time.
MEASURE = """async ([seconds, run, rate, messages]) => {
    const api = window.comfyAPI.api.api, size = rate / messages
    const frames = async send => {
        const times = [], began = performance.now()
        let last = began, sent = 0
        while (last - began < seconds * 1000) {
            const now = await new Promise(requestAnimationFrame)
            times.push(now - last)
            last = now
            if (send && (now - began) * messages / 1000 >= sent) send(sent++)
        }
        return times.slice(2).sort((a, b) => a - b)
    }
    let step = window.flux2Step ?? 0, line = window.flux2Line ?? 1
    const send = () => {
        const loss = Array.from({ length: size }, (_, i) => 0.2 + 0.1 * Math.sin((step + i) / 300) + Math.random() / 20)
        const entry = { kind: 'steps', first: step + 1, total: 100000, rate: 1e-3, loss, smoothed: loss, seconds: loss }
        api.dispatchCustomEvent('flux2_train.run', { run, workflow: '', node: '', first: line, lines: [entry] })
        step += size; line += 1
    }
    const idle = await frames(null), busy = await frames(send)
    window.flux2Step = step; window.flux2Line = line
    const at = (times, share) => times[Math.floor(times.length * share)]
    return { idle: [at(idle, 0.5), at(idle, 0.95)], busy: [at(busy, 0.5), at(busy, 0.95)], step,
             shown: window.flux2Panel.feed.state.step }
}"""
OPEN = """async run => {
    const { api } = window.comfyAPI.api, names = await (await api.fetchApi('/extensions')).json()
    const { runPanel } = await import(api.fileURL(names.find(name => name.endsWith('/panel/run_panel.js'))))
    window.flux2Panel = runPanel(run)
    window.flux2Panel.style.cssText = 'position: fixed; right: 20px; top: 60px; width: 460px; z-index: 9'
    document.body.append(window.flux2Panel)
}"""


# Notes when the chart has drawn which step (seconds since 1970), and the size of each message with its number of steps.
NOTE_DRAWN = """async () => {
    const { api } = window.comfyAPI.api, names = await (await api.fetchApi('/extensions')).json()
    const { Chart } = await import(api.fileURL(names.find(name => name.endsWith('/panel/chart.js'))))
    const { mark } = Chart.prototype
    window.flux2Drawn = []
    window.flux2Sizes = []
    Chart.prototype.mark = function (plot) {
        mark.call(this, plot)
        window.flux2Drawn.push([(performance.timeOrigin + performance.now()) / 1000, this.state.step])
    }
    api.socket.addEventListener('message', ({ data }) => {
        if (typeof data !== 'string' || !data.includes('flux2_train.run"')) return
        const steps = JSON.parse(data).data.lines.filter(({ kind }) => kind === 'steps').map(({ loss }) => loss.length)
        if (steps.length) window.flux2Sizes.push([data.length, steps.reduce((a, b) => a + b)])
    })
}"""
CLOCK = "() => (performance.timeOrigin + performance.now()) / 1000"
TIMED_NODE = Path(__file__).with_name("timed_node.py")


@pytest.fixture(scope="module")
def page(server, chromium):
    context = chromium.new_context(viewport={"width": 1400, "height": 900}, locale="en-US")
    yield open_tab(context, server, False)
    context.close()


def test_a_thousand_points_a_second_leave_the_page_smooth(page, server, full_size):
    """Median frame at most 1.2 times that of the idle page, 95th percentile at most twice; the best of three tries."""
    folder = RunFolder.create(server.folder / "output" / "flux2_train", "speed")
    folder.job.write_text(json.dumps({"training": {}}))
    folder.record.write_text(json.dumps({"kind": "began", "at": 0, "total": 100_000}) + "\n")
    page.evaluate(OPEN, "speed")
    page.wait_for_function("() => window.flux2Panel.feed.state.next === 1")
    tries = []
    for _try in range(3):
        found = page.evaluate(MEASURE, [30 if full_size else 4, "speed", RATE, MESSAGES])
        tries.append([found["busy"][i] / found["idle"][i] for i in (0, 1)])
        print(f"frames in ms (median, 95th percentile): idle {found['idle']}, busy {found['busy']}")
        assert found["shown"] == found["step"] > 0
        if tries[-1][0] <= 1.2 and tries[-1][1] <= 2:
            break
    assert min(tries)[0] <= 1.2 and min(ratio for _, ratio in tries) <= 2, tries


@pytest.fixture(scope="module")
def timed(chromium, tmp_path_factory):
    """(page, server) of a server of its own, which says when steps were done and sent."""
    folder = tmp_path_factory.mktemp("timed")
    (folder / "custom_nodes").mkdir()
    (folder / "custom_nodes" / TIMED_NODE.name).symlink_to(TIMED_NODE)
    with ComfyServer(folder) as server:
        write_files(server.folder)
        context = chromium.new_context(viewport={"width": 1600, "height": 1400}, locale="en-US")
        page = open_tab(context, server, False)
        page.evaluate(NOTE_DRAWN)
        yield page, server
        context.close()


def in_words(seconds) -> str:
    """Median and 95th percentile in ms."""
    return f"median {1000 * median(seconds):.0f} ms, 95th percentile {1000 * quantiles(seconds, n=20)[-1]:.0f} ms"


@pytest.mark.parametrize("resolution", [64, 256], ids=["fast steps", "slow steps"])
def test_a_step_is_in_the_chart_within_milliseconds(timed, full_size, tmp_path, resolution):
    """From the moment the server sends a step until the chart has drawn it; and from the end of that step.

    Fast steps share messages, four a second; a step that takes longer is sent at once.
    """
    page, server = timed
    early, clock, late = time.time(), page.evaluate(CLOCK), time.time()
    assert early - 0.005 < clock < late + 0.005  # the page and the server have one clock
    prompt, workflow = graph(f"timed_{resolution}")
    prompt[DATA]["inputs"]["resolution"] = resolution
    begun = begin(page, prompt, workflow)
    look(page, tmp_path, f"timed_{resolution}")
    page.evaluate("() => { window.flux2Drawn.length = window.flux2Sizes.length = 0 }")
    first = until(page, f"s.step > {begun['step']} + 1")["step"] + 1
    page.wait_for_timeout(60_000 if full_size else 10_000)  # while it trains and draws
    drawn, sizes = page.evaluate("() => [window.flux2Drawn, window.flux2Sizes]")
    times = server.get("/timed")
    server.post("/interrupt", {})
    page.wait_for_function("() => window.flux2Ended")
    last = drawn[-1][1]
    shown = {step: min(at for at, newest in drawn if newest >= step) for step in range(first, last + 1)}
    sent = {step: min(at for at, newest in times["sent"] if newest >= step and at > early) for step in shown}
    on_the_way = [shown[step] - sent[step] for step in shown]
    in_all = [shown[step] - times["done"][str(step)] for step in shown]
    size, steps = sum(size for size, _ in sizes), sum(count for _, count in sizes)
    print(f"{len(shown)} steps in {len(sizes)} messages: sent to drawn {in_words(on_the_way)}; done to drawn "
          f"{in_words(in_all)}; {size / len(sizes):.0f} bytes a message, {size / steps:.0f} a step")  # fmt: skip
    assert min(on_the_way) > -0.005 and quantiles(on_the_way, n=20)[-1] < 0.25
    assert quantiles(in_all, n=20)[-1] < 0.75 and size / steps < 1000
