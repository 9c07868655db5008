// Curves of one run or of two, drawn by uPlot in the colours of ComfyUI's theme.
import uPlot from "../vendor/uPlot.esm.js";
import { words } from "../words.js";

export const COLOURS = ["#8b6cff", "#2f95ef"];
const HEIGHT = 230;

function lookUp(name, element, instead) {
    return getComputedStyle(element).getPropertyValue(name).trim() || instead;
}

// rows of several runs as columns over all their steps: a step that a run has not is null
function columns(rows) {
    const steps = [...new Set(rows.flatMap((row) => row.map(([step]) => step)))].sort((a, b) => a - b);
    const place = new Map(steps.map((step, number) => [step, number]));
    const column = (row, which) => {
        const values = new Array(steps.length).fill(null);
        for (const point of row) values[place.get(point[0])] = point[which];
        return values;
    };
    return { steps, column };
}

// A chart of ``curves``, [{ name, rows: [[step, loss, smoothed], ...] }]. Draws raw losses only for a single run.
export function chart(holder, curves) {
    const { steps, column } = columns(curves.map(({ rows }) => rows));
    const faint = lookUp("--flux2-line", holder, "#8884"), text = lookUp("--flux2-dim", holder, "#999");
    const axis = { stroke: text, grid: { stroke: faint, width: 1 }, ticks: { stroke: faint, width: 1 } };
    const series = [{ label: words("step") }], data = [steps];
    if (curves.length === 1) {
        series.push({ label: words("each step"), stroke: text, width: 1, spanGaps: true, points: { show: false }, alpha: 0.5 });
        data.push(column(curves[0].rows, 1));
    }
    curves.forEach(({ name, rows }, number) => {
        const label = curves.length === 1 ? words("loss, smoothed") : name;
        series.push({ label, stroke: COLOURS[number], width: 2, spanGaps: true, points: { show: false } });
        data.push(column(rows, 2));
    });
    const width = () => Math.max(200, holder.clientWidth);
    const plot = new uPlot({
        width: width(), height: HEIGHT, scales: { x: { time: false } }, axes: [axis, { ...axis, size: 60 }], series,
        cursor: { drag: { x: true, y: false } },
        legend: { live: true },
    }, data, holder);
    const sizes = new ResizeObserver(() => plot.setSize({ width: width(), height: HEIGHT }));
    sizes.observe(holder);
    return () => {
        sizes.disconnect();
        plot.destroy();
    };
}
