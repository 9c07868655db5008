// What nodes of this pack say and show: a widget of its own that wraps its text, takes the room it needs and stays when
// the job has ended. The server tells every open tab (nodes/shown.py) and remembers it for tabs that are opened later.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const EVENT = "flux2_train.shown";
const NAME = "flux2_shown";
const MARGIN = 10;
const MOST_TEXT = 330; // pixels of text before it scrolls
const SHORT_TEXT = 84; // on LoRA Trainer, whose panel says most of it (run.js)
const MOST_IMAGE = 340;

const STYLE = `
.flux2-shown { box-sizing: border-box; width: 100%; overflow: hidden; display: flex; flex-direction: column; gap: 6px;
  font: 12px/1.35 ui-sans-serif, system-ui, sans-serif; color: var(--fg-color, #ddd); }
.flux2-shown .text { box-sizing: border-box; overflow-y: auto; max-height: ${MOST_TEXT}px; padding: 6px 8px;
  white-space: pre-wrap; overflow-wrap: anywhere; user-select: text; cursor: text; border-radius: 6px;
  background: color-mix(in srgb, var(--fg-color, #ddd) 7%, transparent); }
.flux2-shown.short .text { max-height: ${SHORT_TEXT}px; }
.flux2-shown .warning { color: #e8a33d; }
.flux2-shown .good { color: #6fbf73; }
.flux2-shown .bad { color: #e8746b; }
.flux2-shown .columns { font: 11px/1.35 ui-monospace, monospace; }
.flux2-shown a { color: #8ab4f8; }
.flux2-shown img { display: block; max-width: 100%; max-height: ${MOST_IMAGE}px; object-fit: contain; border-radius: 6px;
  align-self: center; }
.p-toast-detail { white-space: pre-line; overflow-wrap: anywhere; }
.flux2-shown .text:empty, .flux2-shown img:not([src]) { display: none; }
`;

function addStyle() {
    const style = document.createElement("style");
    style.textContent = STYLE;
    document.head.append(style);
}

// A line is one element, so that a warning can be coloured. "bad: ", "good: " are marks that are not shown.
function lineOf(text) {
    const line = document.createElement("div");
    const mark = /^(warning|good|bad): /.exec(text);
    if (mark) line.className = mark[1];
    else if (/\S {2,}/.test(text)) line.className = "columns";
    const shown = mark && mark[1] !== "warning" ? `${mark[1] === "good" ? "✓" : "✗"} ${text.slice(mark[0].length)}` : text;
    for (const part of shown.split(/(https:\/\/[^\s]+[^\s.,;)])/)) {
        if (!part.startsWith("https://")) {
            line.append(part);
            continue;
        }
        const link = document.createElement("a");
        Object.assign(link, { href: part, target: "_blank", rel: "noreferrer", textContent: part });
        line.append(link);
    }
    if (!shown) line.append("\u00a0");
    return line;
}

export class Panel {
    constructor(node) {
        this.node = node;
        this.element = document.createElement("div");
        this.element.className = `flux2-shown${node.comfyClass === "Flux2LoraTrainer" ? " short" : ""}`;
        this.text = document.createElement("div");
        this.text.className = "text";
        this.image = document.createElement("img");
        this.image.addEventListener("load", () => this.fit());
        this.element.append(this.text, this.image);
        for (const kind of ["wheel", "pointerdown"]) {
            this.text.addEventListener(kind, (event) => {
                if (this.text.scrollHeight > this.text.clientHeight) event.stopPropagation();
            });
        }
        this.written = "";
        this.height = 0;
        this.widget = node.addDOMWidget(NAME, "flux2_shown", this.element, {
            serialize: false, hideOnZoom: false, margin: MARGIN,
            getValue: () => this.written, setValue: () => {},
            getMinHeight: () => this.height + 2 * MARGIN, getMaxHeight: () => this.height + 2 * MARGIN,
        });
        this.widget.serialize = false;
        const resized = node.onResize;
        node.onResize = (...given) => {
            resized?.apply(node, given);
            this.measure();
        };
    }

    // text and image of ``shown`` in place of the last ones
    show({ text, image }) {
        if (text !== undefined && text !== this.written) {
            this.written = text;
            const below = this.text.scrollTop;
            this.text.replaceChildren(...(text ? text.split("\n").map(lineOf) : []));
            this.text.scrollTop = below;
        }
        if (image !== undefined && image !== (this.image.getAttribute("src") ?? "")) {
            if (image) this.image.src = image;
            else this.image.removeAttribute("src");
        }
        this.fit();
    }

    // the height in pixels that text and image take at the node's width, whether or not the element is drawn
    measure() {
        const copy = this.element.cloneNode(true);
        copy.style.cssText = `position: fixed; visibility: hidden; height: auto; width: ${this.node.size[0] - 2 * MARGIN}px`;
        document.body.append(copy);
        this.height = this.written || this.image.hasAttribute("src") ? Math.ceil(copy.offsetHeight) : 0;
        copy.remove();
    }

    fit() {
        this.measure();
        const needed = this.node.computeSize()[1];
        if (this.node.size[1] < needed) this.node.setSize([this.node.size[0], needed]);
        app.graph?.setDirtyCanvas(true, true);
    }
}

const panels = new WeakMap();

// what a node said is no longer so
export const forget = (node) => panels.get(node)?.show({ text: "", image: "" });

export function panelOf(node) {
    if (!panels.has(node)) panels.set(node, new Panel(node));
    return panels.get(node);
}

function addressOf({ filename, subfolder, type }) {
    return api.apiURL(`/view?${new URLSearchParams({ filename, subfolder: subfolder ?? "", type: type ?? "output" })}`);
}

const isOurs = (node) => node?.comfyClass?.startsWith("Flux2");

// what a node's ui output, or the server's memory, holds
function showOutput(node, output) {
    const [text] = output?.flux2_text ?? [];
    if (text === undefined) return false;
    const [image] = output.flux2_images ?? [];
    panelOf(node).show({ text, image: image ? addressOf(image) : "" });
    return true;
}

function showRemembered(node, { text, picture, images }) {
    panelOf(node).show({ text, image: picture || (images.length ? addressOf(images[0]) : "") });
}

// a node by its id in the queue, which is "12:5" for node 5 in the subgraph that node 12 stands for
export function nodeOf(id) {
    let graph = app.rootGraph ?? app.graph, node;
    for (const part of String(id).split(":")) {
        node = graph?.getNodeById(Number.isNaN(Number(part)) ? part : Number(part));
        graph = node?.subgraph;
    }
    return isOurs(node) ? node : undefined;
}

export const titleOf = (node) => node.title || node.type;

const workflowId = () => (app.rootGraph ?? app.graph)?.id ?? "";

async function restore() {
    const workflow = workflowId();
    if (!workflow) return;
    const answer = await api.fetchApi(`/flux2_train/shown?${new URLSearchParams({ workflow })}`);
    if (!answer.ok || workflowId() !== workflow) return;
    for (const [id, shown] of Object.entries((await answer.json()).nodes)) {
        const node = nodeOf(id);
        if (node && !showOutput(node, outputOf(id)) && !panels.get(node)?.written) showRemembered(node, shown);
    }
    showHistory();
    await fillIn(workflow);
}

// what ComfyUI answered from its cache was not shown anew; its history still has it
async function fillIn(workflow) {
    const empty = (node) => isOurs(node) && !panels.get(node)?.written;
    if (!(app.rootGraph ?? app.graph)._nodes.some(empty)) return;
    const answer = await api.fetchApi("/history?max_items=8");
    if (!answer.ok || workflowId() !== workflow) return;
    for (const { prompt, outputs } of Object.values(await answer.json()).reverse()) {
        if (prompt?.[3]?.extra_pnginfo?.workflow?.id !== workflow) continue;
        for (const [id, output] of Object.entries(outputs ?? {})) {
            const node = nodeOf(id);
            if (node && empty(node)) showOutput(node, output);
        }
    }
}

const outputOf = (id) => app.nodeOutputs?.[id] ?? app.nodeOutputs?.[`${workflowId()}:${id}`];

// a run that was opened from the history brings its outputs with it, a moment after its graph
function showHistory() {
    for (const id of Object.keys(app.nodeOutputs ?? {})) {
        const node = nodeOf(id);
        if (node) showOutput(node, app.nodeOutputs[id]);
    }
}

app.registerExtension({
    name: "flux2_train.shown",
    setup() {
        addStyle();
        api.addEventListener(EVENT, ({ detail }) => {
            const node = detail.workflow && detail.workflow === workflowId() ? nodeOf(detail.node) : undefined;
            if (node) showRemembered(node, detail);
        });
    },
    nodeCreated(node) {
        if (!isOurs(node)) return;
        const executed = node.onExecuted;
        node.onExecuted = function (output, ...rest) {
            showOutput(node, output);
            return executed?.call(this, output, ...rest);
        };
    },
    afterConfigureGraph() {
        restore();
        for (const wait of [300, 1200]) setTimeout(showHistory, wait);
    },
});
