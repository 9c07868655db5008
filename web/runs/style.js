// The look of the tab, in the colours of ComfyUI's theme, light or dark.
const ID = "flux2-runs-style";
const STYLE = `
.flux2-runs, .flux2-ask {
  --flux2-text: var(--fg-color, #ddd); --flux2-ours: #7c5cff;
  --flux2-dim: color-mix(in srgb, var(--flux2-text) 72%, var(--comfy-menu-bg, #333));
  --flux2-line: color-mix(in srgb, var(--flux2-text) 16%, transparent);
  --flux2-soft: color-mix(in srgb, var(--flux2-text) 7%, transparent);
  color: var(--flux2-text); font: 13px/1.4 Inter, ui-sans-serif, system-ui, sans-serif; }
.flux2-runs { display: flex; flex-direction: column; height: 100%; min-height: 0; box-sizing: border-box; }
.flux2-runs *, .flux2-ask * { box-sizing: border-box; }
.flux2-runs h2, .flux2-runs h3, .flux2-ask h3 { margin: 0; font-size: 15px; font-weight: 600; overflow-wrap: anywhere; }
.flux2-runs p, .flux2-ask p { margin: 2px 0; overflow-wrap: anywhere; }
.flux2-runs .dim, .flux2-ask small { color: var(--flux2-dim); }
.flux2-runs .line, .flux2-ask .line { display: flex; align-items: center; gap: 8px; }
.flux2-runs .line > h2 { flex: 1; }
.flux2-runs .grow { flex: 1; min-width: 0; }
.flux2-runs .head { padding: 12px 14px 8px; display: flex; flex-direction: column; gap: 8px; }
.flux2-runs input, .flux2-ask input, .flux2-ask select { background: var(--comfy-input-bg, #222);
  color: var(--input-text, #ddd); border: 1px solid var(--flux2-line); border-radius: 6px; padding: 5px 8px;
  font: inherit; min-width: 0; flex: 1; }
.flux2-runs button, .flux2-ask button { background: var(--flux2-soft); color: var(--flux2-text);
  border: 1px solid var(--flux2-line); border-radius: 6px; padding: 5px 11px; font: inherit; cursor: pointer; }
.flux2-runs button:hover, .flux2-ask button:hover { background: var(--flux2-line); }
.flux2-runs button.first, .flux2-ask button.first { background: #6a48f5; border-color: #6a48f5; color: #fff; }
.flux2-runs button.danger, .flux2-ask button.danger { border-color: #d25555; }
.flux2-runs button.small { padding: 1px 7px; }
.flux2-runs button.close { padding: 0 9px; font-size: 17px; }
.flux2-runs :focus-visible, .flux2-ask :focus-visible { outline: 2px solid #8b6cff; outline-offset: 1px; }
.flux2-runs .chip { border-radius: 10px; padding: 0 8px; font-size: 11px; background: #555; color: #fff; white-space: nowrap; }
.flux2-runs .chip.running { background: #5a41d8; } .flux2-runs .chip.finished { background: #21694a; }
.flux2-runs .chip.stopped, .flux2-runs .chip.paused { background: #705a1d; }
.flux2-runs .chip.failed, .flux2-runs .chip.killed, .flux2-runs .chip.broken { background: #963434; }
.flux2-runs .why { color: color-mix(in srgb, #d98a1f 70%, var(--flux2-text)); font-size: 12px; overflow-wrap: anywhere; }
.flux2-runs .list { position: relative; flex: 1; min-height: 120px; overflow-y: auto; border-top: 1px solid var(--flux2-line); }
.flux2-runs .list:focus-visible { outline-offset: -2px; }
.flux2-runs .space { position: relative; }
.flux2-runs .empty { padding: 0 14px; }
.flux2-runs .empty:not(:empty) { padding-block: 12px; }
.flux2-runs .run { position: absolute; left: 0; right: 0; height: 70px; display: flex; gap: 8px; align-items: center;
  padding: 6px 10px; border-bottom: 1px solid var(--flux2-line); cursor: pointer; contain: strict; font-size: 12px; }
.flux2-runs .run:hover { background: var(--flux2-soft); }
.flux2-runs .run.chosen { background: color-mix(in srgb, var(--flux2-ours) 22%, transparent); }
.flux2-runs .list:focus-visible .run.active { box-shadow: inset 3px 0 0 #8b6cff; }
.flux2-runs .run img, .flux2-runs .run .none { width: 54px; height: 52px; object-fit: cover; border-radius: 4px; flex: none;
  background: var(--flux2-soft); }
.flux2-runs .run > * { pointer-events: none; } /* what is pressed is the row, which stays while its content is replaced */
.flux2-runs .run .what { flex: 1; min-width: 0; }
.flux2-runs .run .what > div { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.flux2-runs .run .name b { font-size: 13px; font-weight: 600; margin-right: 6px; }
.flux2-runs .run .name { display: flex; align-items: center; }
.flux2-runs .run .name b { overflow: hidden; text-overflow: ellipsis; }
.flux2-runs .right { flex: none; width: 62px; text-align: right; }
.flux2-runs .swatch { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 6px; }
.flux2-runs .queue button, .flux2-runs .actions button { white-space: nowrap; }
.flux2-runs .queue .grow { overflow-wrap: anywhere; font-size: 12px; }
.flux2-runs .spark { width: 60px; height: 24px; display: block; }
.flux2-runs .spark polyline { fill: none; stroke: #8b6cff; stroke-width: 1.6; }
.flux2-runs .queue { padding: 0 14px 8px; }
.flux2-runs .queue summary, .flux2-runs details summary { cursor: pointer; padding: 4px 0; }
.flux2-runs .queue ol { list-style: none; margin: 6px 0 0; padding: 0; max-height: 220px; overflow-y: auto; }
.flux2-runs .queue li { padding: 4px 0; }
.flux2-run-detail { position: fixed; z-index: 1001; padding: 14px 16px; gap: 10px; overflow-y: auto; height: auto;
  background: var(--comfy-menu-bg, #333); border: 1px solid var(--flux2-line); border-radius: 10px;
  box-shadow: 0 6px 24px #0006; }
.flux2-run-detail > * { flex: none; }
.flux2-runs .actions, .flux2-ask .actions { display: flex; flex-wrap: wrap; gap: 6px; align-items: center; }
.flux2-runs .curves { min-height: 60px; border-radius: 8px; background: var(--flux2-soft); padding: 6px 4px 0; }
.flux2-runs .holder { display: flex; flex-direction: column; gap: 10px; }
.flux2-runs .through { display: flex; gap: 8px; overflow-x: auto; padding-bottom: 4px; }
.flux2-runs .thumb { flex: none; padding: 4px; display: flex; flex-direction: column; align-items: center; gap: 2px;
  font-size: 11px; }
.flux2-runs .thumb img { height: 130px; max-width: 260px; min-width: 60px; object-fit: contain; border-radius: 4px; }
.flux2-runs .beside { display: grid; grid-template-columns: 1fr 1fr; gap: 12px; }
.flux2-runs .beside .thumb img { height: 220px; max-width: 100%; }
.flux2-runs pre { max-height: 260px; overflow: auto; margin: 0; padding: 8px; border-radius: 6px; white-space: pre-wrap;
  overflow-wrap: anywhere; font: 12px/1.4 ui-monospace, monospace; background: var(--flux2-soft); }
.flux2-runs .settings { border-collapse: collapse; } .flux2-runs .settings th { text-align: left; font-weight: 600; }
.flux2-runs .settings :is(td, th) { padding: 3px 14px 3px 0; border-bottom: 1px solid var(--flux2-line);
  overflow-wrap: anywhere; }
.flux2-runs .u-legend { font-size: 12px; } .flux2-runs .u-legend th { font-weight: 400; }
.flux2-ask { max-width: min(480px, 92vw); padding: 16px 18px; border: 1px solid var(--flux2-line); border-radius: 10px;
  background: var(--comfy-menu-bg, #333); margin: auto; }
.flux2-ask::backdrop { background: #0008; }
.flux2-ask form { display: flex; flex-direction: column; gap: 12px; }
.flux2-ask label { display: flex; flex-direction: column; gap: 4px; }
.flux2-ask.large { max-width: 96vw; } .flux2-ask.large img { max-width: 90vw; max-height: 80vh; display: block; margin: 0 auto 10px;
  min-height: 40vh; object-fit: contain; }
.flux2-ask.large .actions { justify-content: center; }
`;

export function addStyle() {
    if (document.getElementById(ID)) return;
    const style = document.createElement("style");
    style.id = ID;
    style.textContent = STYLE;
    const sheet = document.createElement("link");
    Object.assign(sheet, { rel: "stylesheet", href: new URL("../vendor/uPlot.min.css", import.meta.url).href });
    document.head.append(sheet, style);
}
