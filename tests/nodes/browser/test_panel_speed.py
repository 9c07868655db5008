"""The panel keeps the page smooth at 1,000 points a second.

The lines are like those of a run, given to the page as ComfyUI's websocket gives them; all else is the real frontend.
"""

import json

import pytest
from browsing import browser, open_tab

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


@pytest.fixture(scope="module")
def page(server):
    with browser() as opened:
        context = opened.new_context(viewport={"width": 1400, "height": 900}, locale="en-US")
        yield open_tab(context, server, False)


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
