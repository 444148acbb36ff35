// The page: who tells whom what.

import { Access } from "./access.js";
import { answer } from "./answering.js";
import { ApiError, getJson } from "./api.js";
import { Conversation } from "./conversation.js";
import { DrawingDialog } from "./drawing.js";
import { showExamples } from "./examples.js";
import { watchHealth } from "./health.js";
import { ParameterForm } from "./parameters.js";
import { Attachments } from "./pictures.js";
import { Spoken } from "./spoken.js";
import { TurnView } from "./turn.js";

const byId = (id) => document.getElementById(id);
const [question, askButton, stopButton, turns] = ["question", "ask", "stop", "turns"].map(byId);
const main = document.querySelector("main");
const say = (words) => (byId("notice").textContent = words);

let conversation = new Conversation();
let model = null; // what the server serves, once known
let running = null; // the AbortController of the answer under way

const spoken = new Spoken(byId("spoken"));
const parameters = new ParameterForm(byId("parameters"));
const access = new Access(byId("access"), () => learn());
const attachments = new Attachments({
  list: byId("attached"),
  files: byId("files"),
  freeName: (name, taken) => conversation.freeName(name, taken),
  say,
});
const drawing = new DrawingDialog((url) => {
  attachments.add("drawing.png", url);
  question.focus();
});

/** What has to be known of the server: its model and its parameters. */
async function learn() {
  try {
    parameters.show(await getJson("openapi.json", access.key));
    model = (await getJson("v1/models", access.key)).data[0].id;
    byId("model").textContent = model;
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    access.heed(error); // any other failure is health's to tell
  }
}

function showHealth({ ready, words }) {
  byId("health").textContent = words;
  byId("health").classList.toggle("ready", ready);
  if (ready) learn();
}

function writeAndAsk() {
  const asked = { text: question.value, pictures: attachments.pictures };
  if (running || !isAskable(asked)) return;
  attachments.takeAll();
  question.value = "";
  ask(asked);
}

function isAskable({ text, pictures }) {
  if (!text.trim() && pictures.length === 0) {
    say("Write a question first.");
    question.focus();
    return false;
  }
  if (!parameters.isValid) byId("settings").open = true; // else the field at fault cannot be seen
  return parameters.check();
}

async function ask(asked) {
  const turn = conversation.begin(asked, { model, system: parameters.system, parameters: parameters.values() });
  const view = new TurnView(turn, { hasKey: () => access.key !== "", onRetry: () => retry(turn, view) });
  turns.append(view.element);
  setRunning(new AbortController());
  say("");
  spoken.begin();
  toBottom();
  const { signal } = running;
  const onText = (text) => {
    following(() => view.add(text));
    spoken.add(text);
  };
  await answer(turn, { key: access.key, signal, onText });
  if (!conversation.turns.includes(turn)) return; // started over meanwhile
  following(() => view.end());
  if (turn.state !== "failed") spoken.end(turn.state === "done" ? "End of the answer." : "Stopped.");
  setRunning(null);
  access.heed(turn.error);
  if (turn.state === "failed") checkHealth();
}

function retry(turn, view) {
  if (running || !isAskable(turn.question)) return;
  conversation.remove(turn);
  view.element.remove();
  question.focus();
  ask(turn.question);
}

function startOver() {
  running?.abort();
  conversation = new Conversation();
  turns.replaceChildren();
  attachments.takeAll();
  question.value = "";
  say("");
  setRunning(null);
  question.focus();
}

/** Ask and Stop take each other's place, and the focus with it. */
function setRunning(controller) {
  const focused = document.activeElement;
  running = controller;
  askButton.hidden = Boolean(controller);
  stopButton.hidden = !controller;
  byId("restart").hidden = conversation.turns.length === 0;
  byId("welcome").hidden = conversation.turns.length > 0;
  if (focused === askButton) stopButton.focus();
  if (focused === stopButton) askButton.focus();
}

/** The end of the conversation, with the composer below it. */
function toBottom() {
  main.scrollIntoView({ block: "end" });
}

/** Makes a change; where the end of the conversation was in view, it still is. */
function following(change) {
  const wasAtBottom = main.getBoundingClientRect().bottom <= innerHeight + 80; // pixels
  change();
  if (wasAtBottom) toBottom();
}

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  writeAndAsk();
});
question.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  writeAndAsk();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !document.querySelector("dialog[open]")) running?.abort();
});
stopButton.addEventListener("click", () => running?.abort());
byId("restart").addEventListener("click", startOver);
byId("draw").addEventListener("click", () => drawing.open());
byId("settings").open = matchMedia("(min-width: 60rem)").matches;
showExamples(byId("examples"), (picture, text) => {
  attachments.add(picture.name, picture.url);
  question.value = text;
  question.focus();
  writeAndAsk();
});
const checkHealth = watchHealth(showHealth);
