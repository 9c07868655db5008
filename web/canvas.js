// The older renderer shows advanced inputs among the others. The pack's nodes fold them away in it too, with
// a button to show them; the newer renderer has a button of its own.
import { app } from "../../scripts/app.js";
import { words } from "./words.js";

const PICTURE = "$$canvas-image-preview"; // the frontend's widget for a node's picture

function fold(node) {
    const folded = (node.widgets ?? []).filter((widget) => widget.options?.advanced);
    if (!folded.length) return;
    for (const widget of folded) widget.advanced = true;
    const layout = node.getLayoutWidgets; // it keeps a gap where a widget is folded away
    node.getLayoutWidgets = function () {
        return layout.call(this).filter((widget) => this.showAdvanced || !widget.advanced);
    };
    const label = () => (node.showAdvanced ? words("hide advanced inputs") : words("show {count} advanced inputs", { count: folded.length }));
    const button = node.addWidget("button", "advanced inputs", null, () => node.toggleAdvanced(), { canvasOnly: true, serialize: false });
    button.serialize = false;
    button.label = label();
    const toggle = node.toggleAdvanced;
    node.toggleAdvanced = function () {
        toggle.call(this);
        button.label = label();
        this.setSize([this.size[0], this.computeSize()[1]]);
    };
    node.setSize(node.computeSize());
}

// The older renderer draws a picture below a node that is too low for it: the node grows until it holds the picture.
function grow(node) {
    const executed = node.onExecuted;
    node.onExecuted = function (...output) {
        executed?.apply(this, output);
        let frames = 300; // the picture is fetched and drawn first; the newer renderer never draws it here
        const look = () => {
            // Once another workflow is open, its node of the same number would get this size.
            if (this.graph?.getNodeById(this.id) !== this) return;
            const shown = this.widgets?.some((widget) => widget.name === PICTURE);
            if (!shown) return void (frames-- && requestAnimationFrame(look));
            this.setSize([this.size[0], Math.max(this.size[1], this.computeSize()[1])]);
            this.setDirtyCanvas(true, true);
        };
        if (output[0]?.images?.length) requestAnimationFrame(look);
    };
}

app.registerExtension({
    name: "flux2_train.canvas",
    nodeCreated(node) {
        if (!node.constructor.nodeData?.category?.startsWith("FLUX.2/")) return;
        fold(node);
        grow(node);
    },
});
