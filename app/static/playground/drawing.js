// The drawing dialog: shapes that are placed, a pen that is moved; with a pointer or with the keyboard.

import { COLORS, KINDS, drawShape, fillBackground } from "./shapes.js";
import { chips } from "./chips.js";

const STEP = 8; // pixels an arrow key moves the cross
const MOVES = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP] };

export class DrawingDialog {
  #dialog = document.getElementById("drawing");
  #canvas = document.getElementById("canvas");
  #size = document.getElementById("size");
  #context = this.#canvas.getContext("2d");
  #kind = chips(document.getElementById("kinds"), [...KINDS, "pen"]);
  #color = chips(document.getElementById("colors"), Object.keys(COLORS), { swatches: COLORS });
  #marks = []; // shapes, and strokes: { color, width, points }
  #stroke = null; // the one being drawn
  #cross = { x: this.#canvas.width / 2, y: this.#canvas.height / 2 };

  /** `onDrawn(url)` gets the picture as a PNG's data URL. */
  constructor(onDrawn) {
    this.#dialog.addEventListener("close", () => {
      if (this.#dialog.returnValue !== "use") return;
      this.#paint();
      onDrawn(this.#canvas.toDataURL("image/png"));
    });
    this.#canvas.addEventListener("pointerdown", (event) => this.#press(event));
    this.#canvas.addEventListener("pointermove", (event) => this.#move(event));
    for (const end of ["pointerup", "pointercancel"]) this.#canvas.addEventListener(end, () => (this.#stroke = null));
    this.#canvas.addEventListener("keydown", (event) => this.#key(event));
    for (const change of ["focus", "blur"]) this.#canvas.addEventListener(change, () => this.#paintForPeople());
    document.getElementById("undo").addEventListener("click", () => this.#forget(this.#marks.length - 1));
    document.getElementById("clear").addEventListener("click", () => this.#forget(0));
  }

  open() {
    this.#marks = [];
    this.#dialog.returnValue = "";
    this.#dialog.showModal();
    this.#canvas.focus();
    this.#paintForPeople();
  }

  #press(event) {
    const { x, y } = this.#pixel(event);
    this.#canvas.setPointerCapture(event.pointerId);
    this.#cross = { x, y };
    this.#mark();
  }

  #move(event) {
    if (!this.#stroke) return;
    this.#stroke.points.push(this.#pixel(event));
    this.#paintForPeople();
  }

  #key(event) {
    if (event.key === " " || event.key === "Enter") {
      this.#mark();
      this.#stroke = null;
    } else if (event.key in MOVES) {
      const [dx, dy] = MOVES[event.key];
      this.#cross.x = Math.min(Math.max(this.#cross.x + dx, 0), this.#canvas.width);
      this.#cross.y = Math.min(Math.max(this.#cross.y + dy, 0), this.#canvas.height);
      this.#paintForPeople();
    } else return;
    event.preventDefault();
  }

  /** Places a shape, or begins a stroke, where the cross is. */
  #mark() {
    const [kind, color, size] = [this.#kind(), this.#color(), Number(this.#size.value)];
    if (kind === "pen") {
      this.#stroke = { color, width: size / 4, points: [{ ...this.#cross }] };
      this.#marks.push(this.#stroke);
    } else {
      this.#marks.push({ kind, color, ...this.#cross, radius: size });
    }
    this.#say(`${color} ${kind} at ${this.#cross.x}, ${this.#cross.y}`);
    this.#paintForPeople();
  }

  #forget(from) {
    this.#marks.splice(Math.max(from, 0));
    this.#say(this.#marks.length ? "Last one removed" : "Empty");
    this.#paintForPeople();
  }

  #say(words) {
    document.getElementById("drawn").textContent = words;
  }

  #pixel(event) {
    const box = this.#canvas.getBoundingClientRect();
    return {
      x: Math.round(((event.clientX - box.left) / box.width) * this.#canvas.width),
      y: Math.round(((event.clientY - box.top) / box.height) * this.#canvas.height),
    };
  }

  #paint() {
    fillBackground(this.#context);
    for (const mark of this.#marks) mark.points ? this.#paintStroke(mark) : drawShape(this.#context, mark);
  }

  #paintStroke({ color, width, points }) {
    this.#context.beginPath();
    for (const { x, y } of points) this.#context.lineTo(x, y);
    this.#context.lineTo(points.at(-1).x, points.at(-1).y); // a single point is a dot
    Object.assign(this.#context, { strokeStyle: COLORS[color], lineWidth: width, lineCap: "round", lineJoin: "round" });
    this.#context.stroke();
  }

  /** With the cross, for those who need it. */
  #paintForPeople() {
    this.#paint();
    if (!this.#canvas.matches(":focus-visible")) return;
    const { x, y } = this.#cross;
    this.#context.beginPath();
    for (const [dx, dy] of [[9, 0], [0, 9]]) {
      this.#context.moveTo(x - dx, y - dy);
      this.#context.lineTo(x + dx, y + dy);
    }
    Object.assign(this.#context, { strokeStyle: "#888888", lineWidth: 2 });
    this.#context.stroke();
  }
}
