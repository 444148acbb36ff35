// What was said, and what is sent because of it.

/**
 * A question: `{ text, pictures }`, a picture being `{ name, url }` with a data URL.
 * A call: `{ model, messages: [{ role, text, pictures }], parameters }`, everything that one request says.
 */
export class Turn {
  text = ""; // of the answer
  state = "answering"; // then "done", "stopped" or "failed"
  error = null;
  finishReason = null;
  usage = null;

  constructor(question, call) {
    this.question = question;
    this.call = call;
  }

  /** Failed turns, and those without a word of an answer, are no part of what comes after. */
  get counts() {
    return this.state !== "failed" && this.text !== "";
  }
}

export class Conversation {
  turns = [];

  /** Begins a turn. `system` is the system prompt, empty for none. */
  begin(question, { model, system, parameters }) {
    const messages = this.turns
      .filter((turn) => turn.counts)
      .flatMap((turn) => [message("user", turn.question), message("assistant", { text: turn.text })]);
    if (system) messages.unshift(message("system", { text: system }));
    messages.push(message("user", question));
    const turn = new Turn(question, { model, messages, parameters });
    this.turns.push(turn);
    return turn;
  }

  remove(turn) {
    this.turns = this.turns.filter((other) => other !== turn);
  }

  /** A name like this one that no picture of the conversation has: code refers to pictures by name. */
  freeName(name, taken = []) {
    const names = new Set([...taken, ...this.turns.flatMap((turn) => turn.question.pictures)].map((it) => it.name));
    const [, stem, suffix] = /^(.*?)(\.[^.]*)?$/.exec(name);
    let free = name;
    for (let i = 2; names.has(free); i++) free = `${stem}-${i}${suffix ?? ""}`;
    return free;
  }
}

function message(role, { text, pictures = [] }) {
  return { role, text, pictures };
}

/** The request in the words of the API. `urlOf` gives the URL that stands for a picture. */
export function requestBody(call, urlOf = (picture) => picture.url) {
  return {
    ...(call.model && { model: call.model }), // unknown until the server was ready once
    messages: call.messages.map(({ role, text, pictures }) => ({
      role,
      content: pictures.length === 0 ? text : [...pictures.map((picture) => picturePart(urlOf(picture))), ...textPart(text)],
    })),
    ...call.parameters,
    stream: true,
    stream_options: { include_usage: true },
  };
}

function picturePart(url) {
  return { type: "image_url", image_url: { url } };
}

function textPart(text) {
  return text ? [{ type: "text", text }] : [];
}
