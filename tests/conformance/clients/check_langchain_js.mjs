// LangChain of JavaScript: ChatOpenAI over chat completions and over responses.
import assert from "node:assert";
import { forecast, key, load, named, steering, v1 } from "./server.mjs";

const { ChatOpenAI } = await load("@langchain/openai");
const { HumanMessage, ToolMessage } = await load("@langchain/core/messages");
const { tool } = await load("@langchain/core/tools");
const weather = tool(async ({ town }) => `${town} is wet`, {
  name: "weather", description: "The weather of a town.", schema: forecast,
});

for (const useResponsesApi of [false, true]) {
  const options = { apiKey: key, configuration: { baseURL: v1 }, useResponsesApi };
  const asked = [new HumanMessage("Will it rain?")];
  const model = new ChatOpenAI({ model: named, maxTokens: 12, ...options });
  assert(typeof (await model.invoke(asked)).text === "string");
  let pieces = 0;
  for await (const piece of await model.stream(asked)) pieces += piece ? 1 : 0;
  assert(pieces > 0);
  const caller = new ChatOpenAI({ model: named, maxTokens: 300, ...options });
  const called = await caller.bindTools([weather], { tool_choice: "weather" }).invoke(asked);
  const { id, args } = called.tool_calls[0];
  forecast.parse(args);
  const told = new ToolMessage({ tool_call_id: id, content: await weather.invoke(args) });
  assert(typeof (await model.invoke([...asked, called, told])).text === "string");
  const steered = new ChatOpenAI({ model: "demo", maxTokens: 300, modelKwargs: steering, ...options });
  const formed = await steered.withStructuredOutput(forecast, { method: "jsonSchema" }).invoke(asked);
  forecast.parse(formed);
  console.log(`  responses ${useResponsesApi}: text, stream, tools, ${JSON.stringify(formed)}`);
}
