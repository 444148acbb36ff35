// The code that repeats a call: what a person would write, with pictures read from files of the same names.

import { apiUrl } from "./api.js";
import { requestBody } from "./conversation.js";

/** Text that is code already. */
class Code {
  constructor(text) {
    this.text = text;
  }
}

export const LANGUAGES = [
  { id: "curl", label: "curl", write: curl },
  { id: "openai", label: "Python, openai", write: openai },
  { id: "httpx", label: "Python, httpx", write: httpx },
];

/** Parameters of ours that OpenAI's SDK does not know by name. */
const NOT_OPENAIS = ["top_k", "min_p", "repetition_penalty"];

function curl(call, hasKey) {
  const body = requestBody(call, (picture) => {
    return new Code(`"data:${mediaType(picture)};base64,$(base64 < ${shellQuoted(picture.name)} | tr -d '\\n')"`);
  });
  // The shell still looks into a here-document for these.
  const json = literal(body, { ...JSON_WORDS, string: (text) => JSON.stringify(text).replace(/[\\`$]/g, "\\$&") });
  return [
    `curl -N ${shellQuoted(apiUrl("v1/chat/completions"))} \\`,
    ...(hasKey ? ['  -H "Authorization: Bearer $API_KEY" \\'] : []),
    "  -H 'Content-Type: application/json' \\",
    "  -d @- <<EOF",
    json,
    "EOF",
    "",
  ].join("\n");
}

function openai(call, hasKey) {
  const fields = Object.entries(requestBody(call, asCode));
  const named = fields.filter(([name]) => !NOT_OPENAIS.includes(name));
  const others = fields.filter(([name]) => NOT_OPENAIS.includes(name));
  if (others.length) named.push(["extra_body", Object.fromEntries(others)]);
  return `${imports(call, hasKey, ["base64", "os"])}from openai import OpenAI
${pictureFunction(call)}
client = OpenAI(base_url=${JSON.stringify(apiUrl("v1"))}, api_key=${hasKey ? API_KEY : '"none"'})
answer = client.chat.completions.create(
${named.map(([name, value]) => `    ${name}=${literal(value, PYTHON, "    ")},`).join("\n")}
)
for chunk in answer:
    for choice in chunk.choices:
        print(choice.delta.content or "", end="", flush=True)
print()
`;
}

function httpx(call, hasKey) {
  const headers = hasKey ? `\nheaders = {"Authorization": "Bearer " + ${API_KEY}}` : "";
  return `${imports(call, hasKey, ["base64", "json", "os"])}import httpx
${pictureFunction(call)}
url = ${JSON.stringify(apiUrl("v1/chat/completions"))}${headers}
request = ${literal(requestBody(call, asCode), PYTHON)}
with httpx.stream("POST", url, ${hasKey ? "headers=headers, " : ""}json=request, timeout=300) as answer:
    answer.raise_for_status()
    for line in answer.iter_lines():
        if line.startswith("data: {"):
            for choice in json.loads(line.removeprefix("data: "))["choices"]:
                print(choice["delta"].get("content") or "", end="", flush=True)
print()
`;
}

// How a language writes values. Every escape in a JSON string means the same in a Python string.
const JSON_WORDS = { string: (text) => JSON.stringify(text), true: "true", tab: "  ", afterLast: "" };
const PYTHON = { ...JSON_WORDS, true: "True", tab: "    ", afterLast: "," };
const API_KEY = 'os.environ["API_KEY"]';

function imports(call, hasKey, modules) {
  const needed = { base64: hasPictures(call), os: hasKey, json: true };
  const lines = modules.filter((module) => needed[module]).map((module) => `import ${module}\n`);
  return lines.length ? `${lines.join("")}\n` : "";
}

function pictureFunction(call) {
  if (!hasPictures(call)) return "";
  return `

def data_url(path, media_type):
    with open(path, "rb") as file:
        return f"data:{media_type};base64,{base64.b64encode(file.read()).decode()}"

`;
}

function asCode(picture) {
  return new Code(`data_url(${JSON.stringify(picture.name)}, "${mediaType(picture)}")`);
}

export function picturesOf(call) {
  return call.messages.flatMap((message) => message.pictures);
}

function hasPictures(call) {
  return picturesOf(call).length > 0;
}

function mediaType(picture) {
  return /^data:([^;,]*)/.exec(picture.url)[1];
}

function shellQuoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/** A value of a request as source text, an entry a line, small ones on one line. */
function literal(value, words, indent = "") {
  if (value instanceof Code) return value.text;
  if (typeof value === "string") return words.string(value);
  if (typeof value !== "object") return value === true ? words.true : String(value);
  const inner = indent + words.tab;
  const [open, close, entries] = Array.isArray(value)
    ? ["[", "]", value.map((entry) => literal(entry, words, inner))]
    : ["{", "}", Object.entries(value).map(([name, entry]) => `"${name}": ${literal(entry, words, inner)}`)];
  const line = open + entries.join(", ") + close;
  if (line.length < 90 && !line.includes("\n")) return line;
  return `${open}\n${entries.map((entry) => inner + entry).join(",\n")}${words.afterLast}\n${indent}${close}`;
}
