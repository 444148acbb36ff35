// Filled shapes on a canvas. A shape is { kind, color, x, y, radius } in pixels, the radius that of the circle around it.

export const COLORS = {
  red: "#dc1428",
  green: "#008000",
  blue: "#1e5adc",
  yellow: "#fadc1e",
  purple: "#800080",
  orange: "#ff8c00",
  pink: "#ff69b4",
  brown: "#8b4513",
  black: "#000000",
  white: "#ffffff",
};

/** Points in a circle of radius 1, y pointing down. */
const OUTLINES = {
  circle: ring(Array(64).fill(1)),
  square: ring([1, 1, 1, 1], 45),
  triangle: ring([1, 1, 1], -90),
  star: ring(Array(10).fill(1).map((radius, i) => (i % 2 ? 0.42 : radius)), -90),
  diamond: [[0, -1], [0.68, 0], [0, 1], [-0.68, 0]],
  heart: Array.from({ length: 64 }, (_, i) => heartPoint((2 * Math.PI * i) / 64)),
};

export const KINDS = Object.keys(OUTLINES);

export function drawShape(context, { kind, color, x, y, radius }) {
  context.beginPath();
  for (const [dx, dy] of OUTLINES[kind]) context.lineTo(x + radius * dx, y + radius * dy);
  context.fillStyle = COLORS[color];
  context.fill();
}

export function fillBackground(context, color = "white") {
  context.fillStyle = COLORS[color];
  context.fillRect(0, 0, context.canvas.width, context.canvas.height);
}

function ring(radii, start = 0) {
  return radii.map((radius, i) => {
    const angle = ((start + (360 * i) / radii.length) * Math.PI) / 180;
    return [radius * Math.cos(angle), radius * Math.sin(angle)];
  });
}

function heartPoint(t) {
  const y = 13 * Math.cos(t) - 5 * Math.cos(2 * t) - 2 * Math.cos(3 * t) - Math.cos(4 * t);
  return [(16 * Math.sin(t) ** 3) / 17, -(y + 2.5) / 17];
}
