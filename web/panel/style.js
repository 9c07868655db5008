// What the panel of a run looks like, in the colours of ComfyUI's theme.
import { words } from "../words.js";

const SHEET = new URL("../vendor/uPlot.min.css", import.meta.url).href;
const STYLE = `
.flux2-run { --ours: #8f74ff; --good: #4caf7d; --warn: #e0a030; --bad: #e8746b; --text: var(--fg-color, #ddd);
  --dim: color-mix(in srgb, var(--text) 80%, transparent); --soft: color-mix(in srgb, var(--text) 8%, transparent);
  --edge: color-mix(in srgb, var(--text) 20%, transparent);
  box-sizing: border-box; width: 100%; container-type: inline-size; color: var(--text);
  font: 12px/1.4 ui-sans-serif, system-ui, sans-serif; user-select: text; }
.flux2-run * { box-sizing: border-box; }
.flux2-run [hidden] { display: none !important; }
.flux2-run .row { display: flex; flex-wrap: wrap; gap: 4px 10px; align-items: center; justify-content: space-between; }
.flux2-run .dim { color: var(--dim); }
.flux2-run h4, .flux2-run p { margin: 0; font: inherit; overflow-wrap: anywhere; }
.flux2-run h4 { font-weight: 600; }
.flux2-run .chip { border-radius: 9px; padding: 0 8px; background: var(--soft); margin-left: 6px; font-weight: 400; }
.flux2-run .chip.training { background: #4b3fb0; color: #fff; }
.flux2-run .chip.finished { background: #2d6b4c; color: #fff; }
.flux2-run .chip.bad { background: #8a3a34; color: #fff; }
.flux2-run .bar { height: 6px; margin: 5px 0 8px; border-radius: 3px; background: var(--soft); overflow: hidden; }
.flux2-run .bar i { display: block; height: 100%; width: 0; background: linear-gradient(90deg, #6b4dff, #9b84ff); }
.flux2-run .columns { display: grid; gap: 10px; grid-template-columns: minmax(0, 1fr); }
@container (min-width: 600px) { .flux2-run .columns.both { grid-template-columns: minmax(0, 1.15fr) minmax(0, 1fr); } }
.flux2-run .plot { background: var(--comfy-menu-bg, #222); border-radius: 6px; padding: 4px 2px; min-height: 60px; }
.flux2-run .uplot, .flux2-run .uplot * { font: 11px/1.3 ui-sans-serif, system-ui, sans-serif; }
.flux2-run .u-legend { text-align: left; color: var(--text); font-variant-numeric: tabular-nums; }
.flux2-run .u-legend th, .flux2-run .u-legend td { padding: 1px 3px; }
.flux2-run .u-select { background: color-mix(in srgb, var(--ours) 25%, transparent); }
.flux2-run .u-cursor-x { border-right-color: var(--dim); }
.flux2-run .u-cursor-y { border-bottom-color: var(--dim); }
.flux2-run details, .flux2-run .note { background: var(--soft); border-radius: 6px; padding: 5px 8px; margin-top: 6px;
  overflow-wrap: anywhere; }
.flux2-run summary { cursor: pointer; }
.flux2-run details pre { white-space: pre-wrap; margin: 4px 0 0; font: 11px/1.35 ui-monospace, monospace; }
.flux2-run .warning, .flux2-run .lost { border-left: 3px solid var(--warn); }
.flux2-run .helps { display: flex; flex-wrap: wrap; gap: 6px; margin-top: 4px; }
.flux2-run .helps:not(:has(button:not([hidden]))) { display: none; }
.flux2-run .failed { border-left: 3px solid var(--bad); }
.flux2-run .scroll { max-height: 130px; overflow-y: auto; }
.flux2-run button, .flux2-run input, .flux2-run textarea { font: inherit; color: inherit; border-radius: 6px;
  border: 1px solid var(--edge); background: var(--comfy-input-bg, #222); padding: 3px 9px; }
.flux2-run button { cursor: pointer; }
.flux2-run button:hover:not(:disabled) { border-color: var(--ours); }
.flux2-run button:disabled { opacity: 0.45; cursor: default; }
.flux2-run button.main { background: #6b4fe0; border-color: #6b4fe0; color: #fff; }
.flux2-run button.plain { background: none; border: none; padding: 0 4px; text-decoration: underline; }
.flux2-run :focus-visible { outline: 2px solid var(--ours); outline-offset: 1px; }
.flux2-run .buttons { display: flex; flex-wrap: wrap; gap: 6px; margin-top: 9px; padding-top: 8px;
  border-top: 1px solid var(--edge); }
.flux2-run form { display: grid; gap: 6px; margin-top: 8px; grid-template-columns: auto minmax(0, 1fr); align-items: center; }
.flux2-run form textarea, .flux2-run form .row { width: 100%; grid-column: 1 / -1; }
.flux2-run .said { margin-top: 6px; min-height: 0; }
.flux2-run .said:empty, .flux2-run .lost:empty { display: none; }
.flux2-run .said.wrong { color: var(--bad); }
.flux2-run .slider { position: relative; border-radius: 8px; overflow: hidden; background: #0004; touch-action: none; }
.flux2-run .slider img { display: block; width: 100%; max-height: 420px; object-fit: contain; }
.flux2-run .slider img.over { position: absolute; inset: 0; height: 100%; }
.flux2-run .slider input { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0; cursor: ew-resize; }
.flux2-run .slider input { appearance: none; padding: 0; border: 0; }
.flux2-run .slider input::-webkit-slider-thumb { appearance: none; width: 1px; height: 100%; }
.flux2-run .slider input::-moz-range-thumb { width: 1px; height: 100%; border: 0; }
.flux2-run .slider .line { position: absolute; top: 0; bottom: 0; width: 2px; background: #fff; pointer-events: none; }
.flux2-run .slider .line::after { content: "↔"; position: absolute; top: 46%; left: -15px; width: 32px; text-align: center;
  border-radius: 14px; background: #fff; color: #222; font-weight: 700; }
.flux2-run .slider input:focus-visible ~ .line { background: var(--ours); }
.flux2-run .turn { display: flex; gap: 6px; align-items: center; min-width: 0; }
.flux2-run .turn .label { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 2; overflow: hidden;
  overflow-wrap: anywhere; }
.flux2-run .badge { position: absolute; top: 6px; padding: 0 6px; border-radius: 5px; background: #000a; color: #fff;
  font-size: 11px; pointer-events: none; }
.flux2-run .strip { display: flex; gap: 5px; overflow-x: auto; padding: 3px; }
.flux2-run .strip button { flex: none; width: 62px; padding: 0; border: 2px solid transparent; background: none;
  font-size: 11px; line-height: 1.3; }
.flux2-run .strip button[aria-current=true] { border-color: var(--ours); }
.flux2-run .strip img { display: block; width: 100%; height: 46px; object-fit: cover; border-radius: 4px; }
.flux2-run .strip .due { flex: none; width: 58px; height: 46px; margin: 2px; border: 1px dashed var(--edge); border-radius: 4px;
  display: grid; place-items: center; color: var(--dim); }
dialog.flux2-full { max-width: 96vw; max-height: 96vh; padding: 14px; border-radius: 10px; color: var(--fg-color, #ddd);
  border: 1px solid #8886; background: var(--comfy-menu-bg, #222); overflow: auto; }
dialog.flux2-full::backdrop { background: #000a; }
dialog.flux2-full.large { width: min(1180px, 96vw); }
dialog.flux2-full > button { font: inherit; color: inherit; margin-top: 8px; padding: 3px 12px; border-radius: 6px;
  border: 1px solid #8886; background: var(--comfy-input-bg, #222); cursor: pointer; }
dialog.flux2-full .pair { display: flex; gap: 10px; }
dialog.flux2-full figure { margin: 0; }
dialog.flux2-full figure img { display: block; max-width: 46vw; max-height: 84vh; }
`;

let added = false;

export function addStyle() {
    if (added) return;
    added = true;
    const link = document.createElement("link");
    Object.assign(link, { rel: "stylesheet", href: SHEET });
    const style = document.createElement("style");
    style.textContent = STYLE;
    document.head.append(link, style);
}

// An element with these properties and children; texts become text, never HTML.
export function make(tag, properties = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
        if (name in element) element[name] = value;
        else element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
}

export function button(text, act, properties = {}) {
    const made = make("button", { type: "button", textContent: text, ...properties });
    made.addEventListener("click", act);
    return made;
}

// Opens a dialog above the page. Escape and a click beside it close it: the page would take the key for itself.
export function openDialog(dialog, closed = () => {}) {
    const close = button(words("close"), () => dialog.close());
    dialog.append(close);
    dialog.addEventListener("close", () => {
        dialog.remove();
        closed();
    });
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
    dialog.addEventListener("keydown", (event) => {
        event.stopPropagation();
        if (event.key === "Escape") dialog.close();
    });
    document.body.append(dialog);
    dialog.showModal();
}
