// What the tab asks the server for. Every route is in docs/routes.md.
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { reach } from "../panel/reach.js";
import { words } from "../words.js";

export function say(severity, detail) {
    app.extensionManager?.toast?.add({ severity, summary: words("FLUX.2 runs"), detail, life: severity === "error" ? 12000 : 5000 });
}

async function answered(answer) {
    if (answer.ok) return answer;
    const instead = words("The server answered {status}.", { status: answer.status });
    let error;
    try {
        ({ error } = await answer.json());
    } catch {
        error = instead;
    }
    throw new Error(typeof error === "string" ? error : error?.message ?? instead);
}

const pathOf = (path, query) => `/flux2_train/${path}${query ? `?${new URLSearchParams(query)}` : ""}`;

export async function get(path, query) {
    return (await answered(await reach(pathOf(path, query)))).json();
}

export async function getText(path, query) {
    return (await answered(await reach(pathOf(path, query)))).text();
}

async function send(path, body) {
    const headers = { "Content-Type": "application/json" };
    return (await answered(await reach(path, { method: "POST", headers, body: JSON.stringify(body) }))).json();
}

export const post = (path, body) => send(pathOf(path), body);

// Queues a graph as the button Run does, without opening it.
export function queueGraph(prompt, workflow) {
    return send("/prompt", { prompt, client_id: api.clientId, extra_data: { extra_pnginfo: { workflow } } });
}

export function pictureOf(run, file, size) {
    return api.apiURL(pathOf("runs/picture", { run: run.name, file, size, changed: run.changed }));
}

// Does something, and says in words what went wrong.
export async function trying(action) {
    try {
        return await action();
    } catch (error) {
        say("error", error.message);
        return undefined;
    }
}
