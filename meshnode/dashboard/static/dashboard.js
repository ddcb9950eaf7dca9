// Shows the node's state and chats with its models, over the API that every other client uses.
// Nothing that comes from the node or from a model becomes markup: text goes in by textContent only.

const STORED_KEY = "meshnode.key";
const REFRESH_MS = 2000;
const place = (id) => document.getElementById(id);

let key = null;
let timer = null;
let conversation = []; // messages so far, as the API takes them
let answering = null; // the AbortController of the answer under way

class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function call(path, options = {}) {
  const headers = { Authorization: `Bearer ${key}`, "Content-Type": "application/json" };
  const response = await fetch(path, { ...options, headers, cache: "no-store" });
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  throw new Refused(response.status, body?.error?.message ?? `the node answered ${response.status}`);
}

// The key: from the address, else what this tab remembers, else the form.

async function keyFromAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  if (given.has("key") || given.has("ticket")) history.replaceState(null, "", location.pathname);
  if (given.has("key")) return given.get("key");
  if (!given.has("ticket")) return null;
  const response = await fetch("/dashboard/ticket", { method: "POST", body: given.get("ticket") }).catch(() => null);
  return response?.ok ? await response.text() : null;
}

function askForKey(problem) {
  key = null;
  sessionStorage.removeItem(STORED_KEY);
  clearTimeout(timer);
  place("opened").hidden = true;
  place("unlock").hidden = false;
  place("unlock-problem").textContent = problem;
  place("summary").textContent = "locked";
  place("key").focus();
}

function open(given) {
  if (!/^[\x21-\x7e]+$/.test(given)) return askForKey("That is not a key."); // no header could carry it
  key = given;
  refresh();
}

// The node's state.

async function refresh() {
  clearTimeout(timer);
  const asked = key;
  try {
    const status = await (await call("/api/admin/status")).json();
    if (asked !== key) return;
    sessionStorage.setItem(STORED_KEY, key);
    place("unlock").hidden = true;
    place("opened").hidden = false;
    show(status);
  } catch (error) {
    if (asked !== key) return;
    if (error.status === 401) return askForKey("The node does not accept this key.");
    place("summary").textContent = error instanceof Refused ? error.message : "the node does not answer; is it still running?";
  }
  timer = setTimeout(refresh, REFRESH_MS);
}

function show(status) {
  place("summary").textContent = `${status.node} · version ${status.version} · running for ${duration(status.uptime)}`;
  const models = status.models ?? [];
  fill("models", models.map((model) => row(model.name, model.quantization, model.context_length, model.loaded ? "loaded" : model.detail)));
  place("no-models").hidden = models.length > 0;
  const acquisitions = (status.acquisitions ?? []).filter((item) => item.phase !== "done");
  fill("acquisitions", acquisitions.map((item) => element("li", `${item.reference}: ${item.error ?? progress(item)}`)));
  fill("subsystems", (status.subsystems ?? []).map((item) => row(item.name, item.state, item.restarts)));
  fill("troubles", (status.conditions ?? []).map((item) => element("li", `${item.subsystem}: ${item.text}`)));
  offer(models);
}

function offer(models) {
  const select = place("model");
  const names = models.map((model) => model.name);
  if (names.join("\n") !== [...select.options].map((option) => option.value).join("\n")) {
    const chosen = select.value || models.find((model) => model.loaded)?.name;
    select.replaceChildren(...names.map((name) => new Option(name, name)));
    if (names.includes(chosen)) select.value = chosen;
  }
  place("send").disabled = names.length === 0;
  explain(select.value || "MODEL");
}

function explain(model) {
  const base = `${location.origin}/v1`;
  place("environment").textContent = `export OPENAI_BASE_URL=${base} OPENAI_API_KEY=$(meshnode token)`;
  place("python").textContent = [
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${JSON.stringify(base)}, api_key="...")`,
    `reply = client.chat.completions.create(`,
    `    model=${JSON.stringify(model)}, messages=[{"role": "user", "content": "Why is the sky blue?"}]`,
    ")",
    "print(reply.choices[0].message.content)",
  ].join("\n");
}

function duration(seconds) {
  const minutes = Math.floor(seconds / 60);
  if (minutes < 1) return `${Math.floor(seconds)} s`;
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

function progress(item) {
  return item.total_bytes ? `${item.phase}, ${Math.floor((100 * item.done_bytes) / item.total_bytes)} %` : item.phase;
}

function element(name, text) {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

function row(...cells) {
  const made = document.createElement("tr");
  made.append(...cells.map((cell) => element("td", cell)));
  return made;
}

function fill(id, children) {
  place(id).replaceChildren(...children);
}

// Chat.

function say(role, text) {
  const message = element("p", text);
  message.className = `message ${role}`;
  place("talk").append(message);
  return message;
}

async function ask(question) {
  say("user", question);
  const answer = say("assistant", "");
  const messages = [...conversation, { role: "user", content: question }];
  answering = new AbortController();
  place("send").hidden = true;
  place("stop").hidden = false;
  try {
    const body = JSON.stringify({ model: place("model").value, messages, stream: true });
    const response = await call("/v1/chat/completions", { method: "POST", body, signal: answering.signal });
    for await (const event of events(response)) answer.textContent += event.choices?.[0]?.delta?.content ?? "";
    if (answer.isConnected) conversation = [...messages, { role: "assistant", content: answer.textContent }];
  } catch (error) {
    const reason = error.name === "AbortError" ? "stopped" : error instanceof Refused ? error.message : "the connection broke";
    if (answer.isConnected) say("problem", `${reason}; the question is forgotten`);
    if (error.status === 401) askForKey("The node does not accept this key any more.");
  } finally {
    answering = null;
    place("send").hidden = false;
    place("stop").hidden = true;
  }
}

// The server-sent events of a streamed answer, up to its [DONE]; an answer without one is not complete.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Error("the stream ended early");
    const lines = (pending + value).split("\n");
    pending = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ")) continue;
      const data = line.slice("data: ".length);
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Refused(500, event.error.message);
      yield event;
    }
  }
}

place("unlock-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const given = place("key").value.trim();
  place("key").value = "";
  if (given) open(given);
});
place("chat-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = place("question").value;
  if (answering || !question.trim() || !place("model").value) return;
  place("question").value = "";
  ask(question);
});
place("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  place("chat-form").requestSubmit();
});
place("stop").addEventListener("click", () => answering?.abort());
place("forget").addEventListener("click", () => {
  answering?.abort();
  conversation = [];
  fill("talk", []);
});
place("model").addEventListener("change", () => explain(place("model").value));

const first = (await keyFromAddress()) ?? sessionStorage.getItem(STORED_KEY);
if (first) open(first);
else askForKey("");
