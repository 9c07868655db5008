// Dataset Folder: buttons that open its pictures and choose its folder; pictures that are dropped on it become a data set.
import { app } from "../../scripts/app.js";
import { button, el } from "./data/dom.js";
import { openPictures } from "./data/dialog.js";
import { chooseFolder, droppedFiles, hasPictures, newDataset } from "./data/folders.js";
import { addStyle } from "./data/style.js";
import { words } from "./words.js";

const NODE = "Flux2DatasetFolder", NAME = "flux2_pictures";
const HEIGHT = 34; // pixels, with the margin

function say(severity, detail) {
    app.extensionManager?.toast?.add({ severity, summary: words("Dataset Folder"), detail, life: 8000 });
}

function setFolder(node, name) {
    const widget = node.widgets.find((each) => each.name === "folder");
    widget.value = name;
    widget.callback?.(name);
    node.setDirtyCanvas(true, true);
}

async function choose(node) {
    try {
        const name = await chooseFolder(node.widgets.find((each) => each.name === "folder").value);
        if (name) setFolder(node, name);
    } catch (error) { say("error", error.message); }
}

async function dropped(node, transfer) {
    try {
        const found = await droppedFiles(transfer);
        if (!hasPictures(found)) return say("warn", words("What was dropped holds no picture that can be read here."));
        const made = await newDataset(found, (text) => { node.flux2Pictures.textContent = text; });
        if (!made) return undefined;
        setFolder(node, made.name);
        return say(made.wrong.length ? "warn" : "success", [words("The new data set is {name}.", { name: made.name }), ...made.wrong.slice(0, 5)].join(" "));
    } catch (error) {
        return say("error", error.message);
    } finally {
        node.flux2Pictures.textContent = words("Open pictures");
    }
}

app.registerExtension({
    name: "flux2_train.pictures",
    nodeCreated(node) {
        if (node.comfyClass !== NODE) return;
        addStyle();
        node.flux2Pictures = button(words("Open pictures"), () => openPictures(node));
        const row = el("div", { className: "flux2-row" }, node.flux2Pictures, button(words("Choose folder"), () => choose(node)));
        const widget = node.addDOMWidget(NAME, "flux2_pictures", row, {
            serialize: false, hideOnZoom: true, margin: 4, getValue: () => "", setValue: () => {},
            getMinHeight: () => HEIGHT, getMaxHeight: () => HEIGHT,
        });
        widget.serialize = false;
        node.onDragOver = (event) => [...(event.dataTransfer?.items ?? [])].some((item) => item.kind === "file");
        node.onDragDrop = (event) => {
            if (!event.dataTransfer?.items?.length) return false;
            dropped(node, event.dataTransfer);
            return true;
        };
    },
});
