"use strict";
// The desktop extension of Convene Keys: each line of JSON-RPC on stdin is posted to SITE/mcp, each answer
// is a line on stdout, where nothing else is said. The key goes to no host but the site's. Node 18 or newer.
// Also runs by itself, with CONVENE_URL and CONVENE_API_KEY.

const VERSION = "0.1.0";
const AT_ONCE = 8; // calls under way; the others wait in order
const SENT_MAX = 64 * 1024; // bytes; the site takes no longer message
const LINE_MAX = 4 * 1024 * 1024; // characters kept of one that has not ended
const ANSWER_MAX = 4 * 1024 * 1024; // bytes
const SECONDS = Math.min(Number(process.env.CONVENE_TIMEOUT_SECONDS) || 60, 3600);
const PARSE_ERROR = -32700, INVALID_REQUEST = -32600, REFUSED = -32010; // the last is the site's own
const META = "io.modelcontextprotocol/";
const NAMED = { "tools/call": "name", "prompts/get": "name", "resources/read": "uri" };

const site = siteOf(process.env.CONVENE_URL?.trim());
const key = (process.env.CONVENE_API_KEY ?? "").trim();
const home = `Convene Keys at ${site}`;
const renew = `Make a new key at ${site}/admin/api_keys and enter it in Claude’s settings for Convene Keys.`;
const unusable = whatIsWrong();

const waiting = []; // calls that have not begun
const calls = new Map(); // a request's id -> its call, until it is answered
let underWay = 0, ended = false, negotiated = null, client = "";

class Told extends Error {} // a sentence for a person; its `data` is for programs

function siteOf(address = "") {
  // The key must not cross a network in the open.
  const safe = /^(https:\/\/[^/?#@\\\s]+|http:\/\/(localhost|127(\.\d+){3}|\[::1\])(:\d+)?)\/?$/i;
  return safe.exec(address)?.[1] ?? null;
}

function whatIsWrong() {
  if (typeof fetch !== "function") return "Convene Keys needs Node 18 or newer.";
  if (!site) return "CONVENE_URL must be the https address of Convene Keys, such as https://keys.example.org.";
  if (!key || key.startsWith("${")) return `There is no key yet. ${renew}`; // Claude leaves ${…} as it is
  if (!/^fm_org_[0-9A-Za-z]{38}$/.test(key)) return `What was entered is no key of Convene Keys. ${renew}`;
  return null;
}

const plain = (text) => String(text ?? "").replace(/[^ -~]|[()\\]/g, "").slice(0, 60);

// A header holds printable ASCII; anything else that it has to say is wrapped.
function wrapped(value) {
  const fits = /^([!-~]([ -~]*[!-~])?)?$/.test(value) && !value.startsWith("=?base64?");
  return fits ? value : `=?base64?${Buffer.from(value).toString("base64")}?=`;
}

function headersOf({ method, params }) {
  const meta = params?._meta ?? {}, version = meta[`${META}protocolVersion`];
  const who = method === "initialize" ? params?.clientInfo : meta[`${META}clientInfo`];
  if (who) client = ` (${plain(who.name)} ${plain(who.version)})`;
  const headers = {
    Authorization: `Bearer ${key}`,
    Connection: "close", // one that is kept may be ended by the site while the next call is on its way
    "Content-Type": "application/json",
    Accept: "application/json, text/event-stream",
    "User-Agent": `convene-keys-extension/${VERSION}${client}`,
  };
  if (version !== undefined) {
    const name = params[NAMED[method]];
    headers["MCP-Protocol-Version"] = wrapped(String(version));
    headers["Mcp-Method"] = wrapped(method);
    if (name !== undefined) headers["Mcp-Name"] = wrapped(String(name));
  } else if (negotiated && method !== "initialize") headers["MCP-Protocol-Version"] = negotiated;
  return headers;
}

async function textOf(response) {
  const parts = [];
  let length = 0;
  for await (const part of response.body ?? []) {
    if ((length += part.length) > ANSWER_MAX) throw new Told(`The answer of ${home} is too long to read.`);
    parts.push(part);
  }
  return Buffer.concat(parts).toString();
}

// The answer to a message, as it came and parsed. Throws `Told`.
async function exchange({ line, message, control: { signal } }) {
  if (unusable) throw new Told(unusable);
  if (Buffer.byteLength(line) > SENT_MAX) throw new Told("This is too long to send: 64 KiB is the most.");
  const headers = headersOf(message);
  let response, text, answer;
  try {
    // A redirect is not followed: the key would go with it.
    response = await fetch(`${site}/mcp`, { method: "POST", headers, body: line, redirect: "manual", signal });
    text = await textOf(response);
  } catch (error) {
    if (error instanceof Told) throw error;
    if (signal.aborted)
      throw new Told(`${home} didn’t answer within ${SECONDS} seconds. Look whether it was done before you try again.`);
    const why = error.cause?.code ?? "no reason given";
    console.error(`${error.message}: ${why}`);
    if (/SELF_SIGNED|UNABLE_TO_(GET|VERIFY)|CERT_UNTRUSTED/.test(why))
      throw new Told(
        `This computer doesn’t trust the certificate of ${home}. If an authority of your own has signed it, name ` +
          "the authority’s file in the environment variable NODE_EXTRA_CA_CERTS and start Claude again. " +
          "If not, ask who runs the site.",
      );
    if (/CERT_/.test(why)) throw new Told(`The certificate of ${home} is not valid. Ask who runs the site.`);
    throw new Told(`${home} can’t be reached. Check the internet connection, or ask who runs the site.`);
  }
  try {
    answer = JSON.parse(text);
  } catch {} // no JSON-RPC then, see below
  const pause = `Try again in ${parseInt(response.headers.get("Retry-After")) || 60} seconds.`;
  const sentence = {
    401: `This key no longer works. ${renew}`,
    429: `Too many calls for now. ${pause}`,
    503: `${home} can’t answer just now. ${pause}`,
  }[response.status];
  if (sentence) throw Object.assign(new Told(sentence), { data: answer?.error?.data });
  if ("id" in message ? answer?.jsonrpc !== "2.0" : !response.ok)
    throw new Told(`${home} gave no proper answer (HTTP ${response.status}). Try again later, or ask who runs the site.`);
  return { text, answer };
}

async function carry(call) {
  const { message } = call, { id, method } = message;
  const timer = setTimeout(() => call.control.abort(), SECONDS * 1000);
  let told;
  try {
    const { text, answer } = await exchange(call);
    if (method === "initialize") negotiated = answer?.result?.protocolVersion;
    // As it came, so that no number is bent; a line break can only stand between two of its parts.
    told = answer?.id === id ? text.replace(/[\r\n]+/g, " ") : JSON.stringify({ ...answer, id });
  } catch (error) {
    const text = error instanceof Told ? error.message : "The extension of Convene Keys has failed.";
    if (!call.cancelled) console.error(text);
    // Of a tool's result the assistant tells the person; an error of the protocol may stay unseen.
    const result = { resultType: "complete", content: [{ type: "text", text }], isError: true };
    told = JSON.stringify(method === "tools/call" ? { jsonrpc: "2.0", id, result } : problem(id, REFUSED, text, error.data));
  }
  clearTimeout(timer);
  if (calls.get(id) === call) calls.delete(id);
  if ("id" in message && !call.cancelled) say(told);
}

const say = (line) => process.stdout.write(`${line}\n`);
const problem = (id, code, message, data) => ({ jsonrpc: "2.0", id, error: { code, message, data } });

function next() {
  while (underWay < AT_ONCE && waiting.length) {
    underWay++;
    carry(waiting.shift()).finally(() => (underWay--, next()));
  }
  if (ended && !underWay) process.stdout.write("", () => process.exit(0));
}

function take(line) {
  let message;
  try {
    message = JSON.parse(line);
  } catch {
    return line && say(JSON.stringify(problem(null, PARSE_ERROR, "This line is not well-formed JSON.")));
  }
  if (typeof message?.method !== "string") {
    if (message?.result || message?.error) return; // an answer, though the site never asks anything
    const text = "Each line must be one JSON-RPC request or notification.";
    return say(JSON.stringify(problem(message?.id ?? null, INVALID_REQUEST, text)));
  }
  if (message.method === "notifications/cancelled") {
    const call = calls.get(message.params?.requestId);
    if (call) (call.cancelled = true), call.control.abort();
    return; // the site has nothing to forget
  }
  const call = { line, message, control: new AbortController(), cancelled: false };
  if ("id" in message) calls.set(message.id, call);
  waiting.push(call);
  next();
}

if (unusable) console.error(unusable);
process.stdout.on("error", () => process.exit(0)); // nobody listens any more
let rest = "";
// Not by readline, which also breaks lines at U+2028, and that may stand within a JSON string.
process.stdin.setEncoding("utf8").on("data", (part) => {
  const lines = (rest + part).split("\n");
  rest = lines.pop().slice(0, LINE_MAX);
  for (const line of lines) take(line.trim());
});
process.stdin.on("end", () => {
  take(rest.trim());
  ended = true;
  next();
});
