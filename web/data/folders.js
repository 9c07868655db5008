// Choosing a folder instead of typing its name, and a new data set of pictures that are dropped on the node.
import { reach } from "../panel/reach.js";
import { counted, words } from "../words.js";
import { asked, countedPictures, el } from "./dom.js";
import { read, send } from "./requests.js";
import { addStyle } from "./style.js";

const PICTURE = /\.(png|jpe?g|webp|bmp|tiff?|avif)$/i, CAPTION = /\.(txt|caption)$/i;
const MOST_FILES = 5000, MOST_CAPTION = 65536, AT_ONCE = 3;
const FORBIDDEN = /[\\/:*?"<>|\u0000-\u001f]/g;

export async function chooseFolder(current) {
    addStyle();
    const folders = (await read("folders")).folders.filter(({ pictures }) => pictures);
    const rows = folders.map(({ name, pictures, used }) => el("label", {},
        el("input", { type: "radio", name: "folder", value: name, checked: name === current }),
        el("span", {}, name, " ", el("span", { className: "dim", text: used ? words("{pictures}, used before", { pictures: countedPictures(pictures) }) : countedPictures(pictures) }))));
    const list = el("div", { className: "folders", role: "radiogroup", "aria-label": words("Folders") }, ...rows);
    const nothing = el("p", { className: "dim", text: words("ComfyUI's input folder holds no folder with pictures yet. Drop pictures on Dataset Folder to make one.") });
    return asked(words("Choose a folder of pictures"), [folders.length ? list : nothing], words("Choose"),
        () => list.querySelector("input:checked")?.value ?? null);
}

// ---- dropped files

const entries = (reader) => new Promise((resolve, reject) => reader.readEntries(resolve, reject));
const fileOf = (entry) => new Promise((resolve, reject) => entry.file(resolve, reject));

async function walk(entry, into, found) {
    if (found.length >= MOST_FILES || entry.name.startsWith(".")) return;
    if (entry.isFile) { found.push({ file: await fileOf(entry), into }); return; }
    const reader = entry.createReader();
    for (let some = await entries(reader); some.length; some = await entries(reader)) {
        for (const each of some) await walk(each, each.isFile ? into : [...into, each.name], found);
    }
}

// {name, files: [{file, into}]}: the name of the folder that was dropped, and what is in it
export async function droppedFiles(transfer) {
    const items = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
    if (!items.length) return { name: "", files: [...transfer.files].map((file) => ({ file, into: [] })) };
    const found = [];
    for (const entry of items) await walk(entry, [], found);
    return { name: items.length === 1 && items[0].isDirectory ? items[0].name : "", files: found };
}

export const hasPictures = ({ files }) => files.some(({ file }) => PICTURE.test(file.name));

const clean = (name) => name.replace(FORBIDDEN, "_").replace(/[. ]+$/, "").trim().slice(0, 100);

async function freeName(wanted) {
    const { folders } = await read("folders");
    const taken = new Set(folders.map(({ name }) => name.toLowerCase()));
    for (let number = 1; ; number += 1) {
        const name = number === 1 ? wanted : `${wanted}_${number}`;
        if (!taken.has(name.toLowerCase())) return name;
    }
}

async function upload(name, { file, into }) {
    const form = new FormData();
    form.append("image", file, clean(file.name));
    form.append("type", "input");
    form.append("subfolder", [name, ...into.map(clean)].join("/"));
    const answer = await reach("/upload/image", { method: "POST", body: form });
    if (!answer.ok) throw new Error(words("{name} was not uploaded ({why}).", { name: file.name, why: `${answer.status} ${answer.statusText}` }));
    return [...into.map(clean), (await answer.json()).name].join("/");
}

// Uploads pictures, a few at a time, then writes the captions that lie beside them. Returns sentences on what failed.
async function uploadAll(name, files, progress) {
    const pictures = files.filter(({ file }) => PICTURE.test(file.name)), wrong = [], names = new Map();
    let next = 0, done = 0;
    const work = async () => {
        while (next < pictures.length) {
            const each = pictures[next];
            next += 1;
            try { names.set([...each.into, each.file.name.replace(PICTURE, "")].join("/"), await upload(name, each)); } catch (error) { wrong.push(error.message); }
            done += 1;
            progress(done, pictures.length);
        }
    };
    await Promise.all(Array.from({ length: AT_ONCE }, work));
    const captions = [];
    for (const { file, into } of files.filter(({ file }) => CAPTION.test(file.name) && file.size <= MOST_CAPTION)) {
        const picture = names.get([...into, file.name.replace(CAPTION, "")].join("/"));
        if (picture) captions.push({ name: picture, text: await file.text(), etag: "" });
    }
    for (let start = 0; start < captions.length; start += 500) {
        const answer = await send("captions", { settings: { folder: name }, captions: captions.slice(start, start + 500) });
        wrong.push(...Object.values(answer.wrong));
    }
    return wrong;
}

// Asks for a name, uploads, and returns {name, wrong}; null if the person changed their mind.
export async function newDataset(dropped, say) {
    addStyle();
    const pictures = dropped.files.filter(({ file }) => PICTURE.test(file.name)).length;
    const input = el("input", { "aria-label": words("Name of the new folder"), value: await freeName(clean(dropped.name) || "pictures") });
    const chosen = await asked(counted(pictures, words("A new data set of {count} picture"), words("A new data set of {count} pictures")),
        [el("p", { className: "dim", text: words("The pictures are copied into a new folder in ComfyUI's input folder, with the .txt files of the same names.") }),
            el("label", {}, `${words("Name")} `, input)], words("Upload"), () => clean(input.value));
    if (!chosen) return null;
    const name = await freeName(chosen);
    const wrong = await uploadAll(name, dropped.files, (done, total) => say(words("uploading {done} of {total} ...", { done, total })));
    return { name, wrong };
}
