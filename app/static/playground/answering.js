// One request from its first byte to its last: fills the turn in, and times it.

import { streamChat } from "./api.js";
import { requestBody } from "./conversation.js";

/** Never raises: how it went is in `turn.state`. `onText` is told each piece of the answer. */
export async function answer(turn, { key, signal, onText }) {
  turn.sentAt = performance.now();
  try {
    for await (const chunk of streamChat(requestBody(turn.call), { key, signal })) {
      const choice = chunk.choices[0];
      const text = choice?.delta?.content;
      if (text) {
        turn.lastTextAt = performance.now();
        turn.firstTextAt ??= turn.lastTextAt;
        turn.text += text;
        onText(text);
      }
      turn.finishReason = choice?.finish_reason ?? turn.finishReason;
      turn.usage = chunk.usage ?? turn.usage;
    }
    turn.state = "done";
  } catch (error) {
    turn.state = signal.aborted ? "stopped" : "failed";
    turn.error = error;
  }
  turn.endedAt = performance.now();
}

/** What is known of an answer's course, as [name, value] in words. */
export function figures(turn) {
  const known = [];
  if (turn.firstTextAt) known.push(["First token", `${Math.round(turn.firstTextAt - turn.sentAt)} ms`]);
  const tokens = turn.usage?.completion_tokens;
  // The first token's time is the prompt's; an answer in one piece has no speed.
  const seconds = (turn.lastTextAt - turn.firstTextAt) / 1000;
  if (tokens > 1 && seconds > 0) known.push(["Speed", `${rounded((tokens - 1) / seconds)} tokens/s`]);
  if (turn.usage) {
    const pictures = turn.usage.prompt_tokens_details?.image_tokens;
    known.push(["Answer", count(tokens)]);
    known.push(["Prompt", count(turn.usage.prompt_tokens) + (pictures ? `, ${pictures} for pictures` : "")]);
  }
  if (turn.state !== "failed") known.push(["Total", `${((turn.endedAt - turn.sentAt) / 1000).toFixed(2)} s`]);
  return known;
}

function rounded(rate) {
  return rate < 100 ? rate.toFixed(1) : Math.round(rate);
}

function count(tokens) {
  return tokens === 1 ? "1 token" : `${tokens} tokens`;
}
