// The official TypeScript clients, of both major versions, do an assistant's day's work.
// CONVENE_URL and CONVENE_API_KEY say where; BRIDGE is the desktop extension's server/index.js.
import assert from "node:assert/strict";
import * as v2 from "@modelcontextprotocol/client";
import { StdioClientTransport as Stdio2 } from "@modelcontextprotocol/client/stdio";
import { Client as Client1 } from "@modelcontextprotocol/sdk/client/index.js";
import { StdioClientTransport as Stdio1 } from "@modelcontextprotocol/sdk/client/stdio.js";
import { StreamableHTTPClientTransport as Http1 } from "@modelcontextprotocol/sdk/client/streamableHttp.js";

const { CONVENE_URL, CONVENE_API_KEY, BRIDGE } = process.env;
const headers = { Authorization: `Bearer ${CONVENE_API_KEY}` };
const program = {
  command: process.execPath,
  args: [BRIDGE],
  env: { CONVENE_URL, CONVENE_API_KEY },
  stderr: "inherit",
};
const who = { name: "conformance", version: "1" };
const http = (Transport) => new Transport(new URL("/mcp", CONVENE_URL), { requestInit: { headers } });
const of2 = (mode) => new v2.Client(who, { versionNegotiation: { mode } });

const CONNECTIONS = [
  ["sdk 1 over HTTP", new Client1(who), http(Http1)],
  ["sdk 1 over the bridge", new Client1(who), new Stdio1(program)],
  ["client 2 over HTTP, with a handshake", of2("legacy"), http(v2.StreamableHTTPClientTransport)],
  ["client 2 over HTTP, 2026-07-28", of2({ pin: "2026-07-28" }), http(v2.StreamableHTTPClientTransport)],
  ["client 2 over the bridge, with a handshake", of2("legacy"), new Stdio2(program)],
  ["client 2 over the bridge, 2026-07-28", of2({ pin: "2026-07-28" }), new Stdio2(program)],
];

async function work(client, booking) {
  const { tools } = await client.listTools();
  const approve = tools.find((tool) => tool.name === "approve_booking");
  assert.equal(approve.annotations.readOnlyHint, false);
  const call = (name, args = {}) => client.callTool({ name, arguments: args });

  const pending = (await call("list_bookings", { status: "pending" })).structuredContent.data;
  assert.ok(pending.some(({ id }) => id === booking), `booking ${booking} is not pending`);
  const approved = (await call("approve_booking", { id: booking })).structuredContent;
  assert.equal(approved.status, "approved");
  const absent = await call("approve_booking", { id: 999_999 });
  assert.ok(absent.isError && absent.content[0].text.includes("(code: not_found)"));

  const { resources } = await client.listResources();
  const { contents } = await client.readResource({ uri: resources[0].uri });
  assert.ok("organization" in JSON.parse(contents[0].text).dashboard);
  const { prompts } = await client.listPrompts();
  assert.ok((await client.getPrompt({ name: prompts[0].name })).messages.length > 0);
}

let booking = 0;
for (const [name, client, transport] of CONNECTIONS) {
  await client.connect(transport);
  await work(client, ++booking);
  await client.close();
  console.log(`passed: ${name}`);
}
