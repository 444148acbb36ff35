// The answer for screen readers: whole sentences are added to a polite region as they come, nothing is read twice.

const ENOUGH = 160; // characters without an end of a sentence

export class Spoken {
  #region;
  #pending = "";

  constructor(region) {
    this.#region = region;
  }

  begin() {
    this.#pending = "";
    this.#region.replaceChildren();
  }

  add(text) {
    this.#pending += text;
    const end = Math.max(...[". ", "? ", "! ", "\n"].map((mark) => this.#pending.lastIndexOf(mark))) + 1;
    if (end > 0) this.#say(end);
    else if (this.#pending.length > ENOUGH) this.#say(this.#pending.lastIndexOf(" ") + 1 || ENOUGH);
  }

  end(words) {
    this.#say(this.#pending.length);
    this.#pending = words;
    this.#say(words.length);
  }

  #say(length) {
    const words = this.#pending.slice(0, length).trim();
    this.#pending = this.#pending.slice(length);
    if (!words) return;
    const line = document.createElement("p");
    line.textContent = words;
    this.#region.append(line);
  }
}
