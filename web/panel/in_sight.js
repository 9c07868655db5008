// The graph follows the keyboard: what gets the focus in a node's panel is moved into the window, clear of ComfyUI's bars.
import { app } from "../../../scripts/app.js";

const STILL = 5; // frames in which a box has not moved: a panel follows its node, and a node its panel, some frames later

// Whether a corner or the middle of a box lies outside the window or below one of ComfyUI's bars. Where a panel has just
// grown, its node is not yet as high, and the graph itself is seen there.
function isCovered(box, holder) {
    const along = (from, length) => [from + 2, from + length / 2, from + length - 2];
    const isBar = (seen) => !seen || !(holder.contains(seen) || seen === app.canvas.canvas || seen.closest("[data-node-id]"));
    return along(box.left, box.width).some((x) => along(box.top, box.height).some((y) => isBar(document.elementFromPoint(x, y))));
}

function bringIntoSight(element, holder) {
    // the browser scrolls to what gets the focus, even boxes that have no scroll bar
    for (let each = element.parentElement; each; each = each.parentElement) {
        if (getComputedStyle(each).overflowY === "hidden") each.scrollTop = each.scrollLeft = 0;
    }
    const box = element.getBoundingClientRect(), { ds } = app.canvas;
    if (!box.width || !isCovered(box, holder)) return;
    ds.offset[0] += (innerWidth / 2 - box.left - box.width / 2) / ds.scale;
    ds.offset[1] += (innerHeight / 2 - box.top - box.height / 2) / ds.scale;
    app.canvas.setDirty(true, true);
}

// A press of the mouse gives the focus too, but to something in the window, which must not move away under it.
let down = false;
window.addEventListener("pointerdown", () => { down = true; }, true);
for (const kind of ["pointerup", "pointercancel"]) window.addEventListener(kind, () => { down = false; }, true);

export function followFocus(holder) {
    let wanted = null, last = "", still = 0;
    const look = () => {
        if (!wanted.isConnected) return void (wanted = null);
        const { x, y, width, height } = wanted.getBoundingClientRect(), now = [x, y, width, height].join();
        still = now === last ? still + 1 : 0;
        last = now;
        if (still < STILL) return void requestAnimationFrame(look);
        bringIntoSight(wanted, holder);
        wanted = null;
    };
    holder.addEventListener("focusin", ({ target }) => {
        if (down || !target.matches(":focus-visible")) return;
        const waits = wanted;
        wanted = target.closest("form") ?? target;
        still = 0;
        if (!waits) requestAnimationFrame(look);
    });
}
