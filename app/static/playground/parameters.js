// The form of sampling parameters. Which exist, their ranges and what they do is read from the server's own description.

/** A line adds a parameter; it is shown when the server takes it. `initial` is where the form starts, else empty. */
const PARAMETERS = [
  { name: "temperature", label: "Temperature", initial: 0 },
  { name: "top_p", label: "Top p" },
  { name: "top_k", label: "Top k" },
  { name: "min_p", label: "Min p" },
  { name: "max_completion_tokens", label: "Max tokens", initial: 512 },
  { name: "seed", label: "Seed" },
  { name: "frequency_penalty", label: "Frequency penalty" },
  { name: "presence_penalty", label: "Presence penalty" },
  { name: "repetition_penalty", label: "Repetition penalty" },
];

const STOP_HELP = "Strings before which the answer ends: one a line, \\n for a line break.";

export class ParameterForm {
  #form;
  #system;
  #inputs = new Map();
  #stop = null;

  constructor(form) {
    this.#form = form;
    this.#system = form.querySelector("#system");
    form.addEventListener("submit", (event) => event.preventDefault());
  }

  /** Adds the fields, unless they are there. `openapi` is the server's description of its API. */
  show(openapi) {
    if (this.#stop) return;
    const properties = openapi.components.schemas.ChatCompletionRequest.properties;
    for (const { name, label, initial } of PARAMETERS) {
      const range = numberOf(properties[name]);
      if (!range) continue;
      const input = numberInput(range, properties[name].default);
      input.value = initial ?? "";
      this.#add(name, label, input, properties[name].description);
      this.#inputs.set(name, input);
    }
    this.#stop = document.createElement("textarea");
    this.#stop.rows = 2;
    this.#stop.placeholder = "none";
    this.#add("stop", "Stop at", this.#stop, STOP_HELP);
  }

  get system() {
    return this.#system.value;
  }

  /** Whether what was typed can be sent; where not, the person is told and led there. */
  check() {
    return this.#form.reportValidity();
  }

  get isValid() {
    return this.#form.checkValidity();
  }

  /** What was filled in, by the API's names. */
  values() {
    const filled = [...this.#inputs].filter(([, input]) => input.value !== "");
    const values = Object.fromEntries(filled.map(([name, input]) => [name, input.valueAsNumber]));
    const stop = (this.#stop?.value ?? "").split("\n").filter((line) => line !== "");
    if (stop.length) values.stop = stop.map((line) => line.replaceAll("\\n", "\n"));
    return values;
  }

  #add(name, label, input, help) {
    const field = document.createElement("div");
    field.className = "field";
    const title = document.createElement("label");
    const text = document.createElement("p");
    input.id = `parameter-${name}`;
    title.htmlFor = input.id;
    title.textContent = label;
    text.id = `${input.id}-help`;
    text.className = "help";
    text.textContent = help?.split(/(?<=\.) /)[0] ?? ""; // the first sentence
    input.setAttribute("aria-describedby", text.id);
    field.append(title, input, text);
    this.#form.append(field);
  }
}

/** The part of a JSON schema that takes numbers, if one does. */
function numberOf(property) {
  const variants = property?.anyOf ?? (property ? [property] : []);
  return variants.find(({ type }) => [type].flat().some((it) => it === "number" || it === "integer"));
}

function numberInput({ type, minimum, maximum }, preset) {
  const input = document.createElement("input");
  input.type = "number";
  input.step = [type].flat().includes("number") ? 0.01 : 1;
  input.inputMode = minimum >= 0 ? "decimal" : "text";
  // Larger integers than these would not arrive as they were typed.
  input.min = Math.max(minimum ?? -Infinity, Number.MIN_SAFE_INTEGER);
  input.max = Math.min(maximum ?? Infinity, Number.MAX_SAFE_INTEGER);
  input.placeholder = preset ?? "none";
  return input;
}
