// The graph follows the keyboard: what gets the focus in a node's panel is moved into the window, clear of ComfyUI's bars.
import { app } from "../../../scripts/app.js";

// whether a corner or the middle of a box in ``holder`` lies outside the window or below something else
function isCovered(box, holder) {
    const along = (from, length) => [from + 2, from + length / 2, from + length - 2];
    return along(box.left, box.width).some((x) => along(box.top, box.height).some((y) => !holder.contains(document.elementFromPoint(x, y))));
}

function bringIntoSight(element, holder) {
    // the browser scrolls to what gets the focus, even boxes that have no scroll bar
    for (let each = element.parentElement; each; each = each.parentElement) {
        if (getComputedStyle(each).overflowY === "hidden") each.scrollTop = each.scrollLeft = 0;
    }
    const box = element.getBoundingClientRect(), { ds } = app.canvas;
    if (!isCovered(box, holder)) return;
    ds.offset[0] += (innerWidth / 2 - box.left - box.width / 2) / ds.scale;
    ds.offset[1] += (innerHeight / 2 - box.top - box.height / 2) / ds.scale;
    app.canvas.setDirty(true, true);
}

// A press of the mouse gives the focus too, but to something in the window, which must not move away under it.
let down = false;
window.addEventListener("pointerdown", () => { down = true; }, true);
for (const kind of ["pointerup", "pointercancel"]) window.addEventListener(kind, () => { down = false; }, true);

export function followFocus(holder) {
    holder.addEventListener("focusin", ({ target }) => {
        if (down || !target.matches(":focus-visible")) return;
        requestAnimationFrame(() => target.isConnected && bringIntoSight(target.closest("form") ?? target, holder));
    });
}
