// Would a question be answered? Asked now and then, and only while somebody looks.

import { ApiError, getJson } from "./api.js";

const WHEN_READY = 20_000; // milliseconds
const WHEN_NOT = 3_000;

/** `onChange({ ready, words })` is told at first, and whenever that changes. */
export function watchHealth(onChange) {
  let last = null;
  let timer = 0;

  async function look() {
    clearTimeout(timer);
    const health = await ask();
    if (health.words !== last?.words) onChange(health);
    last = health;
    clearTimeout(timer);
    if (!document.hidden) timer = setTimeout(look, health.ready ? WHEN_READY : WHEN_NOT);
  }

  document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : look()));
  look();
  return look;
}

async function ask() {
  try {
    await getJson("health/ready");
    return { ready: true, words: "Ready" };
  } catch (error) {
    return { ready: false, words: error instanceof ApiError ? error.message : "The server does not answer as expected." };
  }
}
