// The API key, where the server demands one. It stays in this tab: sessionStorage, and nowhere else.

const NAME = "api-key";

export class Access {
  #form;
  #input;
  #complaint;

  /** `onKey()` is called when a person gave a key. */
  constructor(form, onKey) {
    this.#form = form;
    this.#input = form.querySelector("input");
    this.#input.value = this.key;
    this.#complaint = form.querySelector("[role=alert]");
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      sessionStorage.setItem(NAME, this.#input.value.trim());
      this.#complaint.textContent = "";
      onKey();
    });
    form.hidden = !this.key;
  }

  get key() {
    return sessionStorage.getItem(NAME) ?? "";
  }

  /** Shows the field when an error says that a key is missing or wrong. */
  heed(error) {
    if (error?.status !== 401) return;
    this.#form.hidden = false;
    this.#complaint.textContent = error.message;
    this.#input.focus();
  }
}
