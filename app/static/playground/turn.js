// A turn on the page. Whatever a model or a person wrote is set as text, never as markup.

import { figures } from "./answering.js";
import { chips } from "./chips.js";
import { copy } from "./clipboard.js";
import { thumbnail } from "./pictures.js";
import { LANGUAGES, picturesOf } from "./snippets.js";

const STATES = {
  answering: "Thinking…",
  done: "",
  stopped: "Stopped.",
  failed: "",
};

export class TurnView {
  element = document.getElementById("turn").content.cloneNode(true).firstElementChild;
  #turn;
  #text = document.createTextNode("");

  /** `hasKey()` tells whether calls carry an API key; `onRetry()` is called when a person wants to try again. */
  constructor(turn, { hasKey, onRetry }) {
    this.#turn = turn;
    this.#find(".question .text").textContent = turn.question.text;
    this.#find(".pictures").append(...turn.question.pictures.map(listed));
    this.#find(".answer .text").append(this.#text);
    this.#find(".state").textContent = STATES[turn.state];
    this.#find(".retry").addEventListener("click", onRetry);
    this.#prepareCode(hasKey);
  }

  add(text) {
    this.#text.appendData(text);
    this.#find(".state").textContent = "";
  }

  /** The answer is over, one way or another. */
  end() {
    const { state, error, finishReason } = this.#turn;
    this.#find(".answer").removeAttribute("aria-busy");
    this.#find(".state").textContent =
      finishReason === "length" ? "Cut off: the token limit was reached." : STATES[state];
    this.#find(".retry").hidden = state !== "failed";
    if (state === "failed") {
      this.#find(".error").setAttribute("role", "alert");
      this.#find(".error").textContent = sentence(error);
    }
    this.#find(".figures").append(...figures(this.#turn).map(figure));
  }

  #find(selector) {
    return this.element.querySelector(selector);
  }

  #prepareCode(hasKey) {
    const details = this.#find(".code");
    const code = this.#find(".code code");
    const copied = this.#find(".copied");
    const language = chips(this.#find(".code fieldset"), LANGUAGES, { onChange: () => write() });
    const write = () => {
      const { write } = LANGUAGES.find(({ id }) => id === language());
      code.textContent = write(this.#turn.call, hasKey());
      copied.textContent = "";
    };
    details.addEventListener("toggle", () => details.open && write());
    this.#find(".copy").addEventListener("click", async () => {
      copied.textContent = (await copy(code)) ? "Copied" : "Could not copy: select the text instead";
    });
    this.#find(".files").append(...fileLinks(picturesOf(this.#turn.call)));
  }
}

function sentence(error) {
  const wait = Number(error.retryAfter);
  return wait ? `${error.message} The server asks to wait ${wait} second${wait === 1 ? "" : "s"}.` : error.message;
}

function listed(picture) {
  const item = document.createElement("li");
  item.append(thumbnail(picture));
  return item;
}

function figure([name, value]) {
  const pair = document.createElement("div");
  const term = document.createElement("dt");
  const description = document.createElement("dd");
  term.textContent = name;
  description.textContent = value;
  pair.append(term, description);
  return pair;
}

/** The code reads pictures from files: here they are, byte for byte. */
function fileLinks(pictures) {
  if (pictures.length === 0) return [];
  const links = pictures.map(({ name, url }) => {
    const link = document.createElement("a");
    Object.assign(link, { href: url, download: name, textContent: name });
    return link;
  });
  return ["It reads these files, which you can save: ", ...links.flatMap((link, i) => (i ? [", ", link] : [link])), "."];
}
