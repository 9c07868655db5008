// Asks ComfyUI's server. Where nobody answers, the error says so in the reader's language: the browser's own words are English.
import { api } from "../../../scripts/api.js";
import { words } from "../words.js";

const NOBODY = [502, 503, 504]; // what a proxy answers for a server that is away

export async function reach(path, options) {
    const answer = await api.fetchApi(path, options).catch(() => null);
    if (!answer || NOBODY.includes(answer.status)) throw new Error(words("The server cannot be reached."));
    return answer;
}
