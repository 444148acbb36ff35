// The pictures of the question that is being written, and the ways in which they come: chosen, dropped, pasted, drawn.

export class Attachments {
  pictures = [];
  #list;
  #freeName;
  #say;

  /** `freeName(name, taken)` makes a name unique; `say` tells the person what could not be taken. */
  constructor({ list, files, freeName, say }) {
    this.#list = list;
    this.#freeName = freeName;
    this.#say = say;
    files.addEventListener("change", async () => {
      await this.addFiles([...files.files]);
      files.value = ""; // so that the same file can be chosen again
    });
    document.addEventListener("paste", (event) => this.#take(event, event.clipboardData));
    document.addEventListener("dragover", (event) => {
      if (!event.dataTransfer.types.includes("Files")) return;
      event.preventDefault();
      document.body.classList.add("dropping");
    });
    document.addEventListener("dragleave", (event) => {
      if (event.relatedTarget === null) document.body.classList.remove("dropping");
    });
    document.addEventListener("drop", (event) => {
      document.body.classList.remove("dropping");
      this.#take(event, event.dataTransfer);
    });
  }

  #take(event, data) {
    const files = [...(data?.files ?? [])];
    if (files.length === 0) return; // text, which goes where the person put it
    event.preventDefault();
    this.addFiles(files);
  }

  /** Sent as they are: what is too large is refused by the server, in its words. */
  async addFiles(files) {
    const others = files.filter((file) => !file.type.startsWith("image/"));
    this.#say(others.length ? `Not a picture: ${others.map((file) => file.name).join(", ")}.` : "");
    for (const file of files.filter((it) => it.type.startsWith("image/"))) {
      try {
        this.add(file.name, await dataUrl(file));
      } catch {
        this.#say(`${file.name} cannot be read.`);
      }
    }
  }

  add(name, url) {
    this.pictures.push({ name: this.#freeName(name, this.pictures), url });
    this.#show();
  }

  /** The pictures, which now belong to the caller. */
  takeAll() {
    const taken = this.pictures;
    this.pictures = [];
    this.#show();
    return taken;
  }

  #remove(picture) {
    const index = this.pictures.indexOf(picture);
    this.pictures.splice(index, 1);
    this.#show();
    const buttons = this.#list.querySelectorAll("button");
    (buttons[Math.min(index, buttons.length - 1)] ?? document.getElementById("question")).focus();
  }

  #show() {
    this.#list.replaceChildren(
      ...this.pictures.map((picture) => {
        const item = document.createElement("li");
        const button = document.createElement("button");
        button.type = "button";
        button.textContent = "×";
        button.setAttribute("aria-label", `Remove ${picture.name}`);
        button.addEventListener("click", () => this.#remove(picture));
        item.append(thumbnail(picture), button);
        return item;
      }),
    );
  }
}

export function thumbnail(picture) {
  const image = document.createElement("img");
  image.src = picture.url;
  image.alt = picture.name;
  image.title = picture.name;
  return image;
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}
