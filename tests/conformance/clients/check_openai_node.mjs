// openai-node: functions, forms and responses, whole and streamed. Chats and completions: tests/conformance/node.
import assert from "node:assert";
import { forecast, key, load, named, steering, v1, z } from "./server.mjs";

const { default: OpenAI } = await load("openai");
const { zodFunction, zodResponseFormat, zodTextFormat } = await load("openai/helpers/zod");
const client = new OpenAI({ baseURL: v1, apiKey: key, maxRetries: 0 });
const messages = [{ role: "user", content: "Will it rain?" }];
const weather = zodFunction({ name: "weather", description: "The weather of a town.", parameters: forecast });

for (const [model, more] of [[named, {}], ["demo", steering]]) {
  const asked = { model, messages, max_tokens: 300, ...more };
  // A model of random weights comes to an end of calls where it may make one.
  const once = { ...asked, tools: [weather], parallel_tool_calls: false };
  const called = await client.chat.completions.parse({ ...once, tool_choice: "required" });
  forecast.parse(called.choices[0].message.tool_calls[0].function.parsed_arguments);
  const runner = client.chat.completions.stream({
    ...once, tool_choice: { type: "function", function: { name: "weather" } },
  });
  const { message } = (await runner.finalChatCompletion()).choices[0];
  forecast.parse(JSON.parse(message.tool_calls[0].function.arguments));
  const told = [...messages, message, { role: "tool", tool_call_id: message.tool_calls[0].id, content: "wet" }];
  const said = await client.chat.completions.create({ ...asked, messages: told, tools: [weather], max_tokens: 12 });
  assert(said.choices[0].message);
  const formed = await client.chat.completions.parse({ ...asked, response_format: zodResponseFormat(forecast, "forecast") });
  forecast.parse(formed.choices[0].message.parsed);

  const input = "Will it rain?";
  const text = { format: zodTextFormat(forecast, "forecast") };
  const answered = await client.responses.parse({ model, input, text, max_output_tokens: 300, ...more });
  forecast.parse(answered.output_parsed);
  const functions = [{ type: "function", name: "weather", parameters: z.toJSONSchema(forecast), strict: true }];
  const single = { tools: functions, tool_choice: "required", parallel_tool_calls: false, max_output_tokens: 300 };
  const streamed = client.responses.stream({ model, input, ...single, ...more });
  let pieces = 0;
  for await (const event of streamed) pieces += event.type === "response.function_call_arguments.delta" ? 1 : 0;
  const final = await streamed.finalResponse();
  forecast.parse(JSON.parse(final.output[0].arguments));
  assert(pieces > 0);
  console.log(`  ${model}: functions, forms, responses, ${JSON.stringify(answered.output_parsed)}`);
}
