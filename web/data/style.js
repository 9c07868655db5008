// The look of the browser of pictures, in ComfyUI's own colours, so that light and dark themes fit.
import { el } from "./dom.js";

const STYLE = `
.flux2-data, .flux2-ask, .flux2-mask { --dim: color-mix(in srgb, var(--fg-color, #eee) 78%, var(--bg-color, #202020));
  --box: color-mix(in srgb, var(--fg-color, #eee) 9%, transparent); --line: color-mix(in srgb, var(--fg-color, #eee) 24%, transparent);
  box-sizing: border-box; border: 1px solid var(--line); border-radius: 10px; padding: 0; color: var(--fg-color, #eee);
  background: var(--bg-color, #202020); font: 13px/1.45 ui-sans-serif, system-ui, sans-serif; }
.flux2-data::backdrop, .flux2-ask::backdrop, .flux2-mask::backdrop { background: #0009; }
.flux2-data { width: 94vw; height: 92vh; max-width: none; max-height: none; }
.flux2-data[open] { display: flex; flex-direction: column; }
.flux2-data *, .flux2-ask *, .flux2-mask * { box-sizing: border-box; }
.flux2-data h2, .flux2-ask h2, .flux2-mask h2 { font-size: 15px; margin: 0; font-weight: 650; }
.flux2-data button, .flux2-ask button, .flux2-mask button, .flux2-row button { font: inherit; color: var(--fg-color, #eee);
  background: var(--comfy-input-bg, #333); border: 1px solid var(--line, #7777); border-radius: 6px; padding: 4px 11px;
  cursor: pointer; min-height: 28px; }
.flux2-data button:hover, .flux2-ask button:hover, .flux2-mask button:hover { border-color: var(--fg-color, #eee); }
.flux2-data button[aria-pressed=true], .flux2-ask button.main, .flux2-data button.main, .flux2-mask button.main { background: #5b3fd6; color: #fff; border-color: #5b3fd6; }
.flux2-data button:disabled { opacity: .5; cursor: default; }
.flux2-data :focus-visible, .flux2-ask :focus-visible, .flux2-mask :focus-visible { outline: 2px solid #8f74ff; outline-offset: 1px; }
.flux2-data input, .flux2-data textarea, .flux2-data select, .flux2-ask input, .flux2-mask input { font: inherit;
  color: var(--input-text, #ddd); background: var(--comfy-input-bg, #333); border: 1px solid var(--line); border-radius: 6px; padding: 4px 8px; }
.flux2-data .head, .flux2-data .tools, .flux2-data .verdicts { display: flex; flex-wrap: wrap; gap: 8px; align-items: center;
  padding: 9px 16px; border-bottom: 1px solid var(--line); }
.flux2-data .head input { width: 17em; max-width: 100%; }
.flux2-data .tools:empty, .flux2-data .verdicts:empty { display: none; }
.flux2-data .dim, .flux2-ask .dim, .flux2-mask .dim { color: var(--dim); }
.flux2-data .space { flex: 1; } .flux2-data .wide { width: 100%; flex-wrap: nowrap; }
.flux2-data .chips { display: flex; flex-wrap: wrap; gap: 6px; }
.flux2-data .chips button { border-radius: 12px; padding: 1px 10px; min-height: 24px; }
.flux2-data .body { flex: 1; display: flex; min-height: 0; }
.flux2-data .grid { flex: 1; position: relative; overflow-y: auto; overflow-x: hidden; contain: strict; }
.flux2-data .card { position: absolute; left: 0; top: 0; border: 1px solid var(--line); border-radius: 8px; overflow: hidden;
  background: var(--comfy-menu-bg, #2b2b2b); cursor: pointer; contain: strict; }
.flux2-data .card[aria-selected=true] { outline: 2px solid #8f74ff; outline-offset: -1px; }
.flux2-data .card.out .im img { opacity: .3; }
.flux2-data .im { position: relative; background: var(--box); overflow: hidden; }
.flux2-data .im img { position: absolute; inset: 0; width: 100%; height: 100%; object-fit: contain; }
.flux2-data .crop { position: absolute; border: 2px dashed #fffc; outline: 1px dashed #000a; outline-offset: -1px; pointer-events: none; }
.flux2-data .badges { position: absolute; left: 5px; top: 5px; display: flex; flex-wrap: wrap; gap: 4px; }
.flux2-data .badge { background: #000c; color: #fff; border-radius: 5px; padding: 0 6px; font-size: 11px; }
.flux2-data .badge.warn { background: #7a5200; } .flux2-data .badge.bad { background: #8e2323; }
.flux2-data .card p { margin: 0; padding: 4px 8px; height: 44px; overflow: hidden; overflow-wrap: anywhere; font-size: 12px; }
.flux2-data .card small { display: block; padding: 0 8px; color: var(--dim); font-size: 11px; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.flux2-data .none { color: color-mix(in srgb, #d98c00 45%, var(--fg-color, #eee)); font-style: italic; }
.flux2-data .editor { width: min(440px, 42%); border-left: 1px solid var(--line); padding: 14px 16px; overflow-y: auto;
  display: flex; flex-direction: column; gap: 9px; }
.flux2-data .editor .im { height: 300px; flex: none; border-radius: 6px; }
.flux2-data .editor textarea { width: 100%; min-height: 96px; resize: vertical; }
.flux2-data .trained { background: var(--box); border-radius: 6px; padding: 6px 9px; overflow-wrap: anywhere; }
.flux2-data mark { background: #5b3fd6; color: #fff; border-radius: 3px; padding: 0 3px; }
.flux2-data .note { width: 100%; border-left: 3px solid #d98c00; padding: 3px 9px; background: var(--box); overflow-wrap: anywhere; }
.flux2-data .note.bad { border-color: #d04848; }
.flux2-data .row, .flux2-ask .row, .flux2-mask .row { display: flex; flex-wrap: wrap; gap: 8px; align-items: center; }
.flux2-data .repeat { width: 62px; }
.flux2-ask { padding: 18px 20px; min-width: 380px; max-width: 640px; }
.flux2-ask form { display: flex; flex-direction: column; gap: 12px; }
.flux2-ask .folders { max-height: 46vh; overflow-y: auto; border: 1px solid var(--line); border-radius: 6px; }
.flux2-ask .folders label { display: flex; gap: 8px; padding: 5px 10px; cursor: pointer; overflow-wrap: anywhere; }
.flux2-mask { padding: 14px 18px; max-width: none; max-height: none; }
.flux2-mask[open] { display: flex; flex-direction: column; gap: 10px; }
.flux2-mask .paint { position: relative; align-self: center; touch-action: none; }
.flux2-mask .paint img, .flux2-mask .paint canvas { position: absolute; inset: 0; width: 100%; height: 100%; }
.flux2-mask .paint canvas { opacity: .55; cursor: crosshair; }
.flux2-row { display: flex; gap: 6px; width: 100%; height: 100%; align-items: center; --line: color-mix(in srgb, var(--fg-color, #eee) 24%, transparent); }
.flux2-row button { flex: 1; padding: 2px 6px; min-height: 26px; font: 12px ui-sans-serif, system-ui, sans-serif; white-space: nowrap; }
`;

export function addStyle() {
    if (!document.getElementById("flux2-data-style")) document.head.append(el("style", { id: "flux2-data-style", text: STYLE }));
}
