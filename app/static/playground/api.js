// The gateway's API, called from the page that the gateway served. Failures are ApiError, whose message is for people.

import { eventData } from "./events.js";

const UNREACHABLE = "The server cannot be reached. Check your connection, and that the server is running.";
const CUT_OFF = "The connection was lost before the answer was complete.";

export class ApiError extends Error {
  /** @param {{status?: number, retryAfter?: string | null}} more  A failure within a stream has neither. */
  constructor(message, { status, retryAfter } = {}) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

/** Where the API is, for this page and for the code that it shows. */
export function apiUrl(path) {
  return new URL(path, document.baseURI).href;
}

/** The JSON document at `path`. */
export async function getJson(path, key) {
  const response = await send(path, { headers: authorization(key), cache: "no-store" });
  return response.json();
}

/** Yields the chunks of a streamed chat completion until it is complete. */
export async function* streamChat(body, { key, signal }) {
  const response = await send("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json", ...authorization(key) },
    body: JSON.stringify(body),
    signal,
  });
  try {
    for await (const data of eventData(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError(chunk.error.message);
      yield chunk;
    }
  } catch (error) {
    if (error instanceof ApiError || signal.aborted) throw error;
  }
  throw new ApiError(CUT_OFF);
}

async function send(path, options) {
  let response;
  try {
    response = await fetch(apiUrl(path), options);
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new ApiError(UNREACHABLE);
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const more = { status: response.status, retryAfter: response.headers.get("Retry-After") };
  try {
    return new ApiError((await response.json()).error.message, more);
  } catch {
    return new ApiError(`The server answered with status ${response.status} and no explanation.`, more);
  }
}

function authorization(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}
