// The tab "FLUX.2 runs" of the sidebar: every run, one of them in detail, two compared, and the queue of jobs.
import { app } from "../../scripts/app.js";
import { Detail } from "./runs/detail.js";
import { List } from "./runs/list.js";
import { QueueBox } from "./runs/queue.js";
import { addStyle } from "./runs/style.js";
import { words } from "./words.js";

const ID = "flux2_train.runs";
let shown = null;

function open(element) {
    addStyle();
    element.classList.add("flux2-runs");
    const detail = new Detail(element, () => list.refresh());
    const list = new List((chosen) => detail.show(chosen));
    const queue = new QueueBox();
    detail.onCompare = (runs) => list.choose(runs);
    detail.onClose = () => list.choose([]);
    detail.onQueued = () => queue.refresh(true);
    element.replaceChildren(list.head, queue.element, list.element);
    list.begin();
    queue.begin();
    shown = { list, queue, detail };
}

function close() {
    for (const part of Object.values(shown ?? {})) part.end();
    shown = null;
}

app.registerExtension({
    name: ID,
    setup() {
        app.extensionManager?.registerSidebarTab?.({
            id: ID, icon: "pi pi-chart-line", title: words("FLUX.2 runs"), tooltip: words("FLUX.2 runs"), type: "custom",
            render: open, destroy: close,
        });
    },
});
