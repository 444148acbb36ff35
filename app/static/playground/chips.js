// One of several, as radio buttons that look like chips.

let groups = 0;

/**
 * Fills a fieldset. `options` are names, or { id, label }; `swatches` colours by name.
 * Returns a function that tells which one is chosen; `onChange` is told too.
 */
export function chips(fieldset, options, { swatches = {}, onChange = () => {} } = {}) {
  const group = `chips-${groups++}`;
  for (const [index, option] of options.entries()) {
    const { id, label } = typeof option === "string" ? { id: option, label: option } : option;
    const wrapper = document.createElement("label");
    const radio = document.createElement("input");
    Object.assign(radio, { type: "radio", name: group, value: id, checked: index === 0, className: "visually-hidden" });
    const face = document.createElement("span");
    if (id in swatches) {
      const swatch = document.createElement("i");
      swatch.style.backgroundColor = swatches[id];
      face.append(swatch);
    }
    face.append(label);
    wrapper.append(radio, face);
    fieldset.append(wrapper);
  }
  const chosen = () => fieldset.querySelector("input:checked").value;
  fieldset.addEventListener("change", () => onChange(chosen()));
  return chosen;
}
