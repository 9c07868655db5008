// The losses of a run, drawn by uPlot: each step, smoothed, validation, preservation, selectivity; checkpoints and previews on the axis.
import uPlot from "../vendor/uPlot.esm.js";
import { words } from "../words.js";
import { button, make } from "./style.js";

const heightFor = (width) => Math.max(170, Math.min(320, Math.round(width * 0.48)));
const MOST = 1400; // points that are drawn; of more, each place keeps its highest and its lowest
const SERIES = [
    { key: "loss", label: () => words("each step"), stroke: "#888888aa", width: 1 },
    { key: "smoothed", label: () => words("smoothed"), stroke: "#8f74ff", width: 2.2 },
    { key: "validation", label: () => words("validation"), stroke: "#4caf7d", width: 1, points: { show: true, size: 7, fill: "#4caf7d" } },
    { key: "preservation", label: () => words("preservation"), stroke: "#e0a030", width: 1.2, dash: [5, 4] },
    { key: "selectivity", label: () => words("selectivity"), stroke: "#4aa3df", width: 1, scale: "times", points: { show: true, size: 6, fill: "#4aa3df" } },
];
const number = (value) => (value === null || value === undefined ? "–" : Math.abs(value) < 1e-3 ? value.toExponential(2) : value.toFixed(4));

// [steps, ...curves] between two steps; where there are many steps, the extremes of each bucket stand for it
export function points(curves, keys, last, from = 0, to = last) {
    from = Math.max(0, Math.floor(from));
    to = Math.min(last, Math.ceil(to));
    const stride = Math.max(1, Math.ceil((to - from + 1) / (MOST / 2)));
    const keep = new Set();
    for (let start = from; start <= to; start += stride) {
        const end = Math.min(to, start + stride - 1);
        if (stride === 1) keep.add(start);
        else for (const step of extremes(curves.loss, start, end)) keep.add(step);
    }
    const measured = [...Object.keys(curves.validation), ...Object.keys(curves.selectivity)];
    for (const key of measured) if (key >= from && key <= to) keep.add(Number(key));
    const steps = [...keep].sort((a, b) => a - b);
    return [steps, ...keys.map((key) => steps.map((step) => curves[key][step] ?? null))];
}

function extremes(values, start, end) {
    let low = start, high = start;
    for (let i = start; i <= end; i++) {
        if (values[i] < (values[low] ?? Infinity)) low = i;
        if (values[i] > (values[high] ?? -Infinity)) high = i;
    }
    return [low, high];
}

// A node's widget is scaled with the graph, and uPlot counts in the pixels of an element that is not.
function unscaled(plot, target, handler) {
    return (event) => {
        plot.syncRect(true);
        const box = plot.over.getBoundingClientRect(), scale = box.width / plot.over.offsetWidth || 1;
        if (scale !== 1 && !event.flux2Unscaled) {
            const at = { x: box.left + (event.clientX - box.left) / scale, y: box.top + (event.clientY - box.top) / scale };
            Object.defineProperties(event, {
                clientX: { value: at.x }, clientY: { value: at.y }, flux2Unscaled: { value: true },
            });
        }
        handler(event);
    };
}

export class Chart {
    constructor() {
        this.log = false;
        this.zoomed = null; // [first, last] step
        this.place = make("div", { className: "plot", tabIndex: 0, role: "img" });
        this.logButton = button(words("log"), () => this.setLog(!this.log), { className: "plain", title: words("logarithmic losses") });
        this.logButton.setAttribute("aria-pressed", "false");
        this.outButton = button(words("zoom out"), () => this.zoom(null), { className: "plain", disabled: true });
        this.marks = make("span", { className: "dim", textContent: words("▲ checkpoint  ◆ preview  ● validation  ★ best") });
        this.element = make("div", {}, this.place, make("div", { className: "row" }, this.marks, make("span", {}, this.logButton, this.outButton)));
        this.place.addEventListener("keydown", (event) => this.key(event));
        this.sizes = new ResizeObserver(() => this.resize());
        this.sizes.observe(this.place);
        this.theme = new MutationObserver(() => this.plot?.redraw(false)); // its colours are those of the text
        for (const each of [document.documentElement, document.body]) this.theme.observe(each, { attributeFilter: ["class", "style"] });
    }

    show(state) {
        this.state = state;
        const shown = SERIES.filter(({ key }) => key === "loss" || state.curves[key].length), names = shown.map(({ key }) => key).join();
        if (names !== this.names || !this.plot) {
            Object.assign(this, { shown, names });
            this.build();
        } else this.redraw();
        this.describe();
    }

    describe() {
        const { step, curves } = this.state, loss = curves.smoothed[step];
        this.place.setAttribute("aria-label", step
            ? words("Loss of {steps} steps, now {loss} smoothed. Drag to zoom, arrow keys read values.", { steps: step, loss: number(loss) })
            : words("No step is trained yet."));
    }

    data() {
        const last = Math.max(this.state.step, this.state.curves.validation.length - 1);
        return points(this.state.curves, this.shown.map(({ key }) => key), last, ...(this.zoomed ?? []));
    }

    // the last step of the run, or in a long run's beginning one at which the curve can be seen
    end() {
        const { step, total } = this.state;
        return Math.max(step, Math.min(total, Math.max(4 * step, 20)), 1);
    }

    build() {
        this.plot?.destroy();
        this.plot = null;
        const width = this.place.clientWidth - 4;
        if (width < 50) return;
        const axis = { stroke: () => getComputedStyle(this.place).color, grid: { stroke: "#8883", width: 1 }, ticks: { stroke: "#8885", width: 1 }, font: "11px ui-sans-serif, system-ui, sans-serif" };
        const kinds = ["mousedown", "mouseup", "mousemove", "mouseenter", "mouseleave", "dblclick", "click"];
        this.plot = new uPlot({
            width, height: heightFor(width), padding: [8, 10, 0, 0],
            scales: { x: { time: false, range: () => this.zoomed ?? [0, this.end()] }, y: { distr: this.log ? 3 : 1 }, times: { range: (_, least, most) => [0, Math.max(2, 1.1 * (most ?? 0))] } },
            axes: [{ ...axis, size: 30, incrs: [1, 2, 5, 10, 20, 25, 50, 100, 200, 250, 500, 1000, 2000, 2500, 5000, 1e4, 2e4, 5e4, 1e5, 2e5] }, { ...axis, size: 50 },
                ...(this.shown.some(({ scale }) => scale) ? [{ ...axis, scale: "times", side: 1, size: 42, grid: { show: false } }] : [])],
            series: [
                { label: words("step"), value: (_, value) => value ?? this.state.step },
                ...this.shown.map((each) => ({
                    points: { show: false }, ...each, spanGaps: true,
                    label: each.key === "validation" && this.state.heldOut ? words("held-out") : each.label(),
                    value: (_, value, __, at) => number(at === null ? this.state.curves[each.key].findLast((known) => known !== undefined) : value),
                })),
            ],
            cursor: { drag: { x: true, y: false, setScale: false }, bind: Object.fromEntries(kinds.map((kind) => [kind, unscaled])) },
            hooks: {
                setSelect: [(plot) => this.selected(plot)],
                draw: [(plot) => this.mark(plot)],
            },
        }, this.data(), this.place);
    }

    redraw() {
        this.plot.setData(this.data());
    }

    resize() {
        const width = this.place.clientWidth - 4;
        if (!this.state || width < 50) return;
        if (!this.plot) this.build();
        else if (Math.abs(width - this.plot.width) > 1) this.plot.setSize({ width, height: heightFor(width) });
    }

    selected(plot) {
        if (plot.select.width < 4) return;
        const from = Math.round(plot.posToVal(plot.select.left, "x"));
        const to = Math.round(plot.posToVal(plot.select.left + plot.select.width, "x"));
        plot.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
        if (to > from) this.zoom([from, to]);
    }

    zoom(range) {
        this.zoomed = range;
        this.outButton.disabled = !range;
        this.plot?.setData(this.data());
    }

    setLog(on) {
        this.log = on;
        this.logButton.setAttribute("aria-pressed", String(on));
        this.logButton.textContent = on ? words("linear") : words("log");
        this.build();
    }

    key(event) {
        const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
        if (!by || !this.plot) return;
        event.preventDefault();
        event.stopPropagation();
        const { plot } = this, last = plot.data[0].length - 1;
        const at = Math.min(last, Math.max(0, (plot.cursor.idx ?? last) + by));
        plot.setCursor({ left: plot.valToPos(plot.data[0][at], "x"), top: 10 });
        this.place.setAttribute("aria-label", [...plot.root.querySelectorAll(".u-series")].map((row) => row.textContent).join(", "));
    }

    mark({ ctx, bbox, scales, valToPos }) {
        const draw = (step, sign, colour) => {
            if (step < scales.x.min || step > scales.x.max) return;
            ctx.fillStyle = colour;
            ctx.fillText(sign, valToPos(step, "x", true), bbox.top + bbox.height - 3 * devicePixelRatio);
        };
        ctx.save();
        ctx.font = `${10 * devicePixelRatio}px sans-serif`;
        ctx.textAlign = "center";
        for (const step of this.state.checkpoints) draw(step, "▲", "#b9b4e6");
        ctx.textBaseline = "bottom";
        for (const step of this.state.previews.keys()) draw(step, "◆", "#e0a030");
        if (this.state.best) draw(this.state.best, "★", "#4aa3df");
        ctx.restore();
    }

    close() {
        this.sizes.disconnect();
        this.theme.disconnect();
        this.plot?.destroy();
    }
}
