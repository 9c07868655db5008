// ComfyUI opens a template so small that all of it is seen, and then draws no text. The pack's templates open as wide as the
// window instead, at a size at which they can be read. A graph that somebody saved opens as it was.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const PACK = import.meta.url.split("/extensions/")[1].split("/")[0];
const LEAST = 0.62, MOST = 0.85; // scales; below 0.6 the older renderer leaves text out
const LEFT = 80, TOP = 100, RIGHT = 20; // pixels: the sidebar, the bars above
let saved = null;
let asked = new URLSearchParams(location.search).get("flux2_template"); // by scripts/demo, once

function fitWidth() {
    const groups = app.graph._groups;
    const left = Math.min(...groups.map((group) => group.pos[0]));
    const right = Math.max(...groups.map((group) => group.pos[0] + group.size[0]));
    const top = Math.min(...groups.map((group) => group.pos[1]));
    const room = app.canvas.canvas.getBoundingClientRect().width - LEFT - RIGHT;
    const scale = Math.min(MOST, Math.max(LEAST, room / (right - left)));
    app.canvas.ds.scale = scale;
    app.canvas.ds.offset = [LEFT / scale - left, TOP / scale - top];
    app.canvas.setDirty(true, true);
}

// ComfyUI's own ?template= takes no name with a space in it
async function openAsked() {
    const name = asked;
    asked = null;
    const answer = await api.fetchApi(`/workflow_templates/${PACK}/${encodeURIComponent(name)}.json`);
    if (answer.ok) app.loadGraphData(await answer.json(), true, true, name);
}

app.registerExtension({
    name: "flux2_train.view",
    beforeConfigureGraph(graph) {
        saved = graph.extra?.flux2_train?.template ? graph.extra.ds : null;
    },
    afterConfigureGraph() {
        if (asked) setTimeout(openAsked, 0);
        const view = saved;
        if (!view) return;
        // the frontend sets its own view in the next frames: it takes the saved one, except for a template
        setTimeout(() => {
            if (Math.abs(app.canvas.ds.scale - view.scale) > 1e-3 && app.graph._groups.length) fitWidth();
        }, 300);
    },
});
