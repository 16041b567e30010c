// The Vercel AI SDK: its provider for servers that are compatible, and OpenAI's own, which speaks responses.
import assert from "node:assert";
import { forecast, key, load, named, steering, v1 } from "./server.mjs";

const { generateText, streamText, tool, Output } = await load("ai");
const { createOpenAICompatible } = await load("@ai-sdk/openai-compatible");
const { createOpenAI } = await load("@ai-sdk/openai");

const compatible = createOpenAICompatible({
  name: "ladle", baseURL: v1, apiKey: key, includeUsage: true, supportsStructuredOutputs: true,
});
const openai = createOpenAI({ baseURL: v1, apiKey: key });
const weather = tool({
  description: "The weather of a town.", inputSchema: forecast, execute: async ({ town }) => `${town} is wet`,
});
const prompt = "Will it rain?";

for (const [label, model] of [
  ["compatible", compatible(named)], ["openai, chat", openai.chat(named)], ["openai, responses", openai(named)],
]) {
  const said = await generateText({ model, prompt, system: "Be brief.", maxOutputTokens: 12 });
  assert(typeof said.text === "string" && said.usage.outputTokens > 0);
  const stream = streamText({ model, prompt, maxOutputTokens: 12 });
  let text = "";
  for await (const piece of stream.textStream) text += piece;
  assert.equal(text, await stream.text);
  assert(["stop", "length"].includes(await stream.finishReason) && (await stream.usage).inputTokens > 0);
  // Named, it is called once: a model of random weights comes to no end of several calls.
  const toolChoice = { type: "tool", toolName: "weather" };
  const called = await generateText({ model, prompt, tools: { weather }, toolChoice, maxOutputTokens: 300 });
  assert.equal(called.toolResults[0].output, `${called.toolCalls[0].input.town} is wet`);
  const formed = await generateText({
    model, prompt, output: Output.object({ schema: forecast }), maxOutputTokens: 300,
  });
  forecast.parse(formed.output);
  console.log(`  ${label}: text, stream, tools, ${JSON.stringify(formed.output)}`);
}
const steered = await generateText({
  model: compatible("demo"), prompt, maxOutputTokens: 12, providerOptions: { ladle: steering },
});
assert.deepEqual(steered.request.body.steering ?? JSON.parse(steered.request.body).steering, steering.steering);
