// LoRA Trainer shows its run in a panel: while it trains, after a reload, in every tab, and when its graph is opened again.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { showPicture } from "./data/find.js";
import { ask } from "./panel/feed.js";
import { followFocus } from "./panel/in_sight.js";
import { runPanel } from "./panel/run_panel.js";
import { forget, nodeOf } from "./shown.js";

const TRAINER = "Flux2LoraTrainer";
const NAME = "flux2_run";
const MARGIN = 10;
const LEAST_WIDTH = 420;

class RunWidget {
    constructor(node) {
        this.node = node;
        this.height = 0;
        this.holder = document.createElement("div");
        this.holder.style.cssText = "width: 100%; overflow: hidden";
        followFocus(this.holder);
        this.widget = node.addDOMWidget(NAME, "flux2_run", this.holder, {
            serialize: false, hideOnZoom: false, margin: MARGIN, getValue: () => this.run ?? "", setValue: () => {},
            getMinHeight: () => this.room(), getMaxHeight: () => this.room(),
        });
        this.widget.serialize = false;
        // the panel above the text
        const text = node.widgets.findIndex(({ name }) => name === "flux2_shown");
        if (text >= 0) node.widgets.splice(text, 0, ...node.widgets.splice(-1));
    }

    room() {
        return this.height ? this.height + 2 * MARGIN : 0;
    }

    show(run) {
        if (run === this.run) return;
        this.panel?.close();
        this.run = run;
        this.panel = runPanel(run, { goOn: () => app.queuePrompt(0, 1), enlarge: true, showPicture });
        this.panel.addEventListener("flux2shown", () => this.told(this.panel.feed.state));
        this.holder.replaceChildren(this.panel);
        this.sizes ??= new ResizeObserver(() => this.fit());
        this.sizes.disconnect();
        this.sizes.observe(this.panel);
        this.fit();
    }

    // the text below the panel says what a run is doing, and a process that was killed did not say that it ended
    told({ status, trains }) {
        if (status === "killed" && !trains) forget(this.node);
    }

    fit() {
        const height = Math.ceil(this.panel.offsetHeight); // not scaled with the graph
        if (!height || Math.abs(height - this.height) < 2) return;
        this.height = height;
        const { node } = this, width = Math.max(node.size[0], LEAST_WIDTH), needed = node.computeSize()[1];
        if (node.size[1] < needed || node.size[0] < width) node.setSize([width, Math.max(needed, node.size[1])]);
        app.graph?.setDirtyCanvas(true, true);
    }

    close() {
        this.panel?.close();
        this.sizes?.disconnect();
    }
}

const widgets = new WeakMap();

function widgetOf(node) {
    if (!widgets.has(node)) {
        widgets.set(node, new RunWidget(node));
        const removed = node.onRemoved;
        node.onRemoved = function (...given) {
            widgets.get(node)?.close();
            return removed?.apply(this, given);
        };
    }
    return widgets.get(node);
}

const graphNow = () => app.rootGraph ?? app.graph;

// the runs of the graph that was opened, by what their folders say
async function restore() {
    const workflow = graphNow()?.id;
    if (!workflow) return;
    const found = [];
    const collect = (graph, before) => {
        for (const node of graph._nodes ?? []) {
            if (node.comfyClass === TRAINER) found.push([`${before}${node.id}`, node]);
            if (node.subgraph) collect(node.subgraph, `${before}${node.id}:`);
        }
    };
    collect(graphNow(), "");
    for (const [id, node] of found) {
        const before = widgets.get(node)?.run;
        const { run } = await ask({ workflow, node: id, after: 999_999_999 }).catch(() => ({}));
        const overtaken = widgets.get(node)?.run !== before; // the websocket has told of a newer run meanwhile
        if (run && !overtaken && graphNow()?.id === workflow && node.graph) widgetOf(node).show(run);
    }
}

app.registerExtension({
    name: "flux2_train.run",
    setup() {
        api.addEventListener("flux2_train.run", ({ detail }) => {
            if (!detail.workflow || detail.workflow !== graphNow()?.id) return;
            const node = nodeOf(detail.node);
            if (node?.comfyClass === TRAINER) widgetOf(node).show(detail.run);
        });
        api.addEventListener("reconnected", restore); // a run may have begun meanwhile
    },
    afterConfigureGraph() {
        restore();
    },
});
