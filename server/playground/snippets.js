// A request as others would send it.

const SHELL_KEY = '"Authorization: Bearer $LADLE_API_KEY"';
const OWN_ARGUMENTS = ["method", "preference", "strength", "trace"]; // the others go into steering

/** `body` as a curl command for a POSIX shell; the key, if one is needed, is a variable of that shell. */
export function asCurl(origin, body, withKey) {
  const lines = [`curl ${origin}/v1/generate`, "  -H 'Content-Type: application/json'"];
  if (withKey) lines.push(`  -H ${SHELL_KEY}`);
  // A quote inside single quotes: end them, an escaped one, begin again.
  lines.push(`  -d '${JSON.stringify(body, null, 2).replaceAll("'", "'\\''")}'`);
  return lines.join(" \\\n");
}

/** `body` as a program that uses `ladle.clients`; it finds the key in LADLE_API_KEY by itself. */
export function asPython(origin, body) {
  const { model, messages, prompt, steering, ...rest } = body;
  const options = { ...rest };
  const others = {};
  for (const [name, value] of Object.entries(steering ?? {})) {
    (OWN_ARGUMENTS.includes(name) ? options : others)[name] = value;
  }
  if (Object.keys(others).length) options.steering = others;
  const single = messages?.length === 1 && messages[0].role === "user";
  const first = messages ? (single ? messages[0].content : messages) : prompt;
  const call = [literal(first, 8), `model=${literal(model, 8)}`];
  for (const [name, value] of Object.entries(options)) call.push(`${name}=${literal(value, 8)}`);
  return [
    "from ladle.clients import Client",
    "",
    `with Client(${literal(origin, 0)}) as ladle:`,
    `    reply = ladle.${messages ? "chat" : "generate"}(`,
    ...call.map((argument) => `        ${argument},`),
    "    )",
    "    print(reply.text)",
    "",
  ].join("\n");
}

/** A JSON value as a Python literal. JSON's strings and numbers are Python's. */
function literal(value, indent) {
  if (value === null || value === undefined) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const array = Array.isArray(value);
  const parts = array
    ? value.map((entry) => literal(entry, indent + 4))
    : Object.entries(value).map(([key, entry]) => `${JSON.stringify(key)}: ${literal(entry, indent + 4)}`);
  const [open, close] = array ? "[]" : "{}";
  const line = open + parts.join(", ") + close;
  if (line.length + indent < 90) return line;
  const pad = " ".repeat(indent + 4);
  return `${open}\n${parts.map((part) => `${pad}${part},\n`).join("")}${" ".repeat(indent)}${close}`;
}
