// Calls to the server that this page came from.

const KEY = "ladle-api-key";
let memory = ""; // where storage is forbidden

/** Where the server is, as others would address it: behind a proxy, with its prefix. */
export function serverUrl() {
  return new URL(".", location.href).href.replace(/\/$/, "");
}

/** The API key of this tab. */
export function apiKey() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return memory;
  }
}

/** Keep the key until the tab is closed, and nowhere else; "" forgets it. */
export function setApiKey(key) {
  memory = key;
  try {
    if (key) sessionStorage.setItem(KEY, key);
    else sessionStorage.removeItem(KEY);
  } catch {
    // Kept in memory then.
  }
}

/** A refusal or failure, in the server's words. */
export class ApiError extends Error {
  constructor(message, { status = 0, param = null, code = null, retryAfter = null } = {}) {
    super(message);
    this.status = status;
    this.param = param;
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

async function send(path, body, signal) {
  const headers = {};
  // A header holds bytes, which fetch takes as Latin-1; keys are UTF-8.
  const key = String.fromCharCode(...new TextEncoder().encode(apiKey()));
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached.");
  }
  if (response.ok) return response;
  throw await refusal(response);
}

async function refusal(response) {
  const retryAfter = response.headers.get("retry-after");
  const status = response.status;
  try {
    const { error } = await response.json();
    return new ApiError(error.message, { status, param: error.param, code: error.code, retryAfter });
  } catch {
    return new ApiError(`The server answered ${status} ${response.statusText}.`, { status, retryAfter });
  }
}

/** The JSON answer of an endpoint; a POST where there is a body. */
export async function call(path, body, signal) {
  return (await send(path, body, signal)).json();
}

/**
 * The events of POST /v1/generate; `began(id)` hears by which id it may be steered, or null. Aborting `signal`, or leaving the loop early, closes the connection, and the server
 * then frees what the request held.
 */
export async function* generate(body, signal, began = () => {}) {
  const response = await send("v1/generate", body, signal);
  began(response.headers.get("x-generation-id"));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new ApiError("The answer broke off: the connection was closed before its end.");
      buffer += value;
      const blocks = buffer.split("\n\n");
      buffer = blocks.pop();
      for (const block of blocks) {
        if (!block.startsWith("data: ")) continue; // a comment that keeps the connection alive
        const data = block.slice(6);
        if (data === "[DONE]") return;
        const event = JSON.parse(data);
        if (event.error) throw new ApiError(event.error.message, event.error);
        yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
