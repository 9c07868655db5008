// Opens the browser of pictures at one picture of a graph's data sets.
import { app } from "../../../scripts/app.js";
import { words } from "../words.js";
import { openPictures } from "./dialog.js";
import { isNamed } from "./model.js";
import { nodesOf } from "./nodes.js";
import { send, settingsOf } from "./requests.js";

const NODE = "Flux2DatasetFolder";
const PAGE = 500;

async function holds(node, name) {
    for (let start = 0, total = 1; start < total; start += PAGE) {
        const found = await send("pictures", { settings: settingsOf(node), start, count: PAGE });
        if (found.pictures.some((picture) => isNamed(picture, name))) return true;
        ({ total } = found);
    }
    return false;
}

// ``name`` is a file's name without its folder, as warnings of a run have it
export async function showPicture(name) {
    const nodes = nodesOf(app.rootGraph ?? app.graph, NODE);
    for (const node of nodes) {
        if (await holds(node, name).catch(() => false)) return openPictures(node, name);
    }
    app.extensionManager?.toast?.add({ severity: "warn", summary: words("Dataset Folder"), detail: words("No Dataset Folder of this graph has {picture}.", { picture: name }), life: 8000 });
    return undefined;
}
