// A picture and a question each, for the first minute: drawn here, so that nothing has to be fetched.

import { drawShape, fillBackground } from "./shapes.js";
import { thumbnail } from "./pictures.js";

const EXAMPLES = [
  {
    name: "red-circle.png",
    question: "What is in this image?",
    shapes: [{ kind: "circle", color: "red", x: 120, y: 90, radius: 60 }],
  },
  {
    name: "star-and-square.png",
    question: "What color is the star?",
    shapes: [
      { kind: "star", color: "green", x: 72, y: 88, radius: 46 },
      { kind: "square", color: "blue", x: 170, y: 96, radius: 46 },
    ],
  },
  {
    name: "three-triangles.png",
    question: "How many triangles are there?",
    shapes: [
      { kind: "triangle", color: "orange", x: 45, y: 110, radius: 26 },
      { kind: "triangle", color: "purple", x: 122, y: 84, radius: 42 },
      { kind: "triangle", color: "orange", x: 196, y: 116, radius: 26 },
    ],
  },
];

/** `onChosen(picture, question)` is told which one a person wants. */
export function showExamples(list, onChosen) {
  list.replaceChildren(
    ...EXAMPLES.map(({ name, question, shapes }) => {
      const picture = { name, url: drawn(shapes) };
      const item = document.createElement("li");
      const button = document.createElement("button");
      button.type = "button";
      const image = thumbnail(picture);
      image.alt = `${name}: `;
      button.append(image, question);
      button.addEventListener("click", () => onChosen(picture, question));
      item.append(button);
      return item;
    }),
  );
}

function drawn(shapes) {
  const canvas = document.createElement("canvas");
  canvas.width = 240;
  canvas.height = 180;
  const context = canvas.getContext("2d");
  fillBackground(context);
  for (const shape of shapes) drawShape(context, shape);
  return canvas.toDataURL("image/png");
}
