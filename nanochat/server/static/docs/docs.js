// The API's documentation, made from /openapi.json: operations, fields, and requests to try.

import { authorization, setKey } from "../shared/api.js";
import { byId, make, textButton } from "../shared/dom.js";

const EXAMPLES = {
  "/v1/chat/completions": { messages: [{ role: "user", content: "What is 12 times 3?" }], max_tokens: 64 },
  "/v1/completions": { prompt: "The capital of France is", max_tokens: 16 },
  "/tokenize": { text: "Hello, world" },
  "/detokenize": { tokens: [72, 105] },
};
const ANSWER_CHARS = 20_000;

let schemas = {};

async function start() {
  byId("base").textContent = `${location.origin}/v1`;
  byId("python").textContent =
    `from openai import OpenAI\n\nclient = OpenAI(base_url="${location.origin}/v1", api_key="none")\n` +
    `answer = client.chat.completions.create(\n    model="MODEL", messages=[{"role": "user", "content": "Hello"}]\n)`;
  byId("key").value = authorization().authorization?.slice("Bearer ".length) ?? "";
  byId("key").addEventListener("change", (event) => {
    setKey(event.target.value.trim());
    showModel();
  });
  try {
    const api = await (await fetch("/openapi.json")).json();
    schemas = api.components?.schemas ?? {};
    show(api.paths);
  } catch {
    byId("trouble").textContent = "The server does not respond. Is it still running?";
    byId("trouble").hidden = false;
    return;
  }
  await showModel();
}

/** Names the served model in the example, where the server lets us ask. */
async function showModel() {
  const response = await fetch("/v1/models", { headers: authorization() }).catch(() => null);
  if (!response?.ok) return;
  const name = (await response.json()).data[0].id;
  byId("python").textContent = byId("python").textContent.replace('"MODEL"', JSON.stringify(name));
}

function show(paths) {
  for (const [path, methods] of Object.entries(paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      const section = operationOf(method.toUpperCase(), path, operation);
      const link = make("a", "", path);
      link.href = `#${section.id}`;
      byId("contents").append(link);
      byId("operations").append(section);
    }
  }
  if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
}

function operationOf(method, path, operation) {
  const section = make("section", "operation");
  section.id = `${method.toLowerCase()}${path.replace(/[^a-z]+/g, "-")}`.replace(/-$/, "");
  section.append(make("h2", "", make("span", "verb", method), path));
  section.append(make("p", "", operation.description ?? operation.summary ?? ""));
  const body = operation.requestBody?.content?.["application/json"]?.schema;
  const parameters = (operation.parameters ?? []).map((p) => [p.name, p.schema, p.required]);
  const rows = body ? fieldsOf(resolve(body)) : parameters;
  if (rows.length) section.append(table(rows, []));
  section.append(tryIt(method, path));
  return section;
}

/** [name, schema, required] of each property of an object's schema; the required ones first. */
function fieldsOf(schema) {
  const required = schema.required ?? [];
  const rows = Object.entries(schema.properties ?? {}).map(([name, field]) => [name, field, required.includes(name)]);
  return rows.sort((a, b) => b[2] - a[2]);
}

/** `above` holds the names of the schemas that this table stands in: a schema may contain itself. */
function table(rows, above) {
  const list = make("dl", "fields");
  for (const [name, schema, required] of rows) {
    const term = make("dt", "", name);
    if (required) term.append(make("b", "", "required"));
    const about = make("dd", "", make("span", "type", typeOf(schema)));
    const note = schema.description ?? resolve(schema).description;
    if (note) about.append(make("br"), note.split("\n")[0]);
    about.append(...parts(schema, above));
    list.append(make("div", "", term, about));
  }
  return list;
}

/** The objects that a field may hold, each to be opened. */
function parts(schema, above) {
  return referred(schema)
    .filter((name) => !above.includes(name) && schemas[name]?.properties)
    .map((name) => {
      const details = make("details", "", make("summary", "", `${name}'s fields`));
      details.append(table(fieldsOf(schemas[name]), [...above, name]));
      return details;
    });
}

function referred(schema) {
  if (schema.$ref) return [schema.$ref.split("/").pop()];
  const inner = [...(schema.anyOf ?? []), ...(schema.oneOf ?? []), ...(schema.items ? [schema.items] : [])];
  return [...new Set(inner.flatMap(referred))];
}

function resolve(schema) {
  return schema.$ref ? (schemas[schema.$ref.split("/").pop()] ?? {}) : schema;
}

/** A schema in words: "number from 0 to 2, or null; default 1". */
function typeOf(schema) {
  const standard = schema.default === undefined || schema.default === null ? "" : `; default ${JSON.stringify(schema.default)}`;
  return kindOf(schema) + standard;
}

function kindOf(schema) {
  const choices = schema.anyOf ?? schema.oneOf;
  if (choices) return choices.filter((choice) => choice.type !== "null").map(kindOf).join(" or ") || "anything";
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" or ");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.type === "array") return `list, each ${schema.items ? kindOf(schema.items) : "anything"}`;
  if (schema.properties) return `object with ${Object.keys(schema.properties).join(", ")}`;
  const { minimum, maximum } = schema;
  const range =
    minimum !== undefined && maximum !== undefined ? ` from ${minimum} to ${maximum}`
    : minimum !== undefined ? ` of at least ${minimum}`
    : maximum !== undefined ? ` of at most ${maximum}` : "";
  return (schema.type ?? "anything") + range;
}

/** A request to send from here or from a terminal. */
function tryIt(method, path) {
  const box = make("details", "try", make("summary", "", "Try it"));
  const input = make("textarea");
  input.setAttribute("aria-label", `Body of ${method} ${path}`);
  input.spellcheck = false;
  input.value = JSON.stringify(EXAMPLES[path] ?? {}, null, 2);
  input.rows = input.value.split("\n").length + 1;
  const curl = make("code");
  const answer = make("pre");
  answer.hidden = true;
  answer.setAttribute("aria-live", "polite");
  const write = () => { curl.textContent = curlOf(method, path, input.value); };
  input.addEventListener("input", write);
  byId("key").addEventListener("change", write);
  write();
  const send = textButton("Send", () => request(method, path, input.value, send, answer), "pill primary");
  if (method === "POST") box.append(input);
  box.append(make("pre", "", curl));
  if (!path.includes("{")) box.append(make("div", "row", send), answer);
  return box;
}

function curlOf(method, path, body) {
  const lines = [`curl ${location.origin}${path}`];
  if (authorization().authorization) lines.push("-H 'Authorization: Bearer KEY'");
  if (method === "POST") {
    let compact = body;
    try {
      compact = JSON.stringify(JSON.parse(body));
    } catch {
      // not JSON yet: shown as it is
    }
    lines.push("-H 'Content-Type: application/json'", `-d '${compact.replaceAll("'", `'\\''`)}'`);
  }
  return lines.join(" \\\n  ");
}

async function request(method, path, body, button, answer) {
  button.disabled = true;
  answer.hidden = false;
  answer.textContent = "…";
  const json = { "content-type": "application/json" };
  const sent = method === "POST" ? { method, body, headers: { ...json, ...authorization() } } : { headers: authorization() };
  try {
    const response = await fetch(path, sent);
    answer.textContent = `${response.status}\n`;
    if ((response.headers.get("content-type") ?? "").includes("application/json")) {
      answer.textContent += JSON.stringify(await response.json(), null, 2).slice(0, ANSWER_CHARS);
    } else {
      const pieces = response.body.pipeThrough(new TextDecoderStream()).getReader();
      for (let piece = await pieces.read(); !piece.done; piece = await pieces.read()) {
        answer.append(piece.value);
        if (answer.textContent.length > ANSWER_CHARS) break;
      }
    }
  } catch {
    answer.textContent = "The server does not respond. Is it still running?";
  }
  button.disabled = false;
}

start();
