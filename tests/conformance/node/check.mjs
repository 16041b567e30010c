// openai-node against a server: node check.mjs BASE_URL KEY FOLDER_OF_NODE_MODULES CASE. Prints one JSON object; a failed
// assertion ends with its message and a non-zero status.
import assert from "node:assert/strict";
import { createRequire } from "node:module";

const [baseURL, apiKey, folder, name] = process.argv.slice(2);
const { OpenAI } = createRequire(`${folder}/`)("openai");
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: 60_000 });
const messages = [
  { role: "system", content: "Be kind." },
  { role: "user", content: "Tell me about rain." },
];
const endless = { logit_bias: { 0: -100, 2: -100 } };

const cases = {
  async chat() {
    const options = { model: "demo/bone_soup@positive=.8,simple=.2", messages, max_tokens: 12, seed: 5, ...endless };
    const whole = await client.chat.completions.create({ ...options, n: 2, logprobs: true, top_logprobs: 2 });
    assert.equal(whole.choices.length, 2);
    const [choice] = whole.choices;
    assert.equal(choice.finish_reason, "length");
    assert.equal(choice.logprobs.content.length, 12);
    assert.ok(choice.logprobs.content.every((token) => token.top_logprobs.length === 2));
    assert.equal(whole.usage.completion_tokens, 24);
    assert.deepEqual(whole.steering.preference, { positive: 0.8, simple: 0.2, concise: 0 });
    const stream = await client.chat.completions.create({
      ...options,
      stream: true,
      stream_options: { include_usage: true },
    });
    const chunks = [];
    for await (const chunk of stream) chunks.push(chunk);
    const text = chunks.flatMap((chunk) => chunk.choices.map((piece) => piece.delta.content ?? "")).join("");
    assert.equal(text, choice.message.content);
    assert.deepEqual(chunks.at(-1).choices, []);
    assert.equal(chunks.at(-1).usage.completion_tokens, 12);
    return { text };
  },
  async helper() {
    const runner = client.chat.completions.stream({ model: "demo", messages, max_tokens: 8, seed: 1, ...endless });
    let text = "";
    runner.on("content", (delta) => (text += delta));
    const final = await runner.finalChatCompletion();
    assert.equal(final.choices[0].message.content, text);
    return { text };
  },
  async completions() {
    const options = { model: "demo", max_tokens: 6, seed: 1, ...endless };
    const reply = await client.completions.create({ ...options, prompt: ["the rain", "the sea"], logprobs: 1, n: 2 });
    assert.deepEqual(
      reply.choices.map((choice) => choice.index),
      [0, 1, 2, 3],
    );
    const text = reply.choices[0].text;
    const stopped = await client.completions.create({ ...options, prompt: "the rain", stop: [text.slice(2, 4)] });
    assert.equal(stopped.choices[0].finish_reason, "stop");
    assert.ok(text.startsWith(stopped.choices[0].text) && stopped.choices[0].text.length <= 2);
    // Fields that OpenAI's types do not know are sent all the same.
    const steering = { method: "mage", preference: { positive: 1 } };
    const steered = await client.completions.create({ ...options, prompt: "the rain", steering });
    assert.equal(steered.steering.method, "mage");
    return {};
  },
  async errors() {
    const create = (body) => client.chat.completions.create({ model: "demo", messages, ...body });
    await assert.rejects(create({ temperature: 3 }), (error) => {
      assert.ok(error instanceof OpenAI.BadRequestError);
      assert.equal(error.param, "temperature");
      assert.equal(error.code, "invalid_value");
      assert.match(error.requestID, /^req-/);
      return true;
    });
    await assert.rejects(create({ model: "gpt-4o" }), OpenAI.NotFoundError);
    const ids = [];
    for await (const model of client.models.list()) ids.push(model.id);
    assert.ok(ids.includes("demo/mage"));
    return { ids };
  },
  async abandon() {
    const options = { model: "demo", max_tokens: 8000, stream: true, ...endless };
    for await (const _ of await client.chat.completions.create({ ...options, messages, n: 2 })) break;
    const stream = await client.completions.create({ ...options, prompt: "a" });
    for await (const _ of stream) stream.controller.abort();
    return {};
  },
};

console.log(JSON.stringify(await cases[name]()));
