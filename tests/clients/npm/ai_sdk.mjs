// The AI SDK through its three providers: text, a stream, usage, a required tool, an object.

import { generateObject, generateText, jsonSchema, streamText, tool } from "ai";
import assert from "node:assert/strict";
import { report } from "./served.mjs";

const settings = { prompt: "Tell me a story about a lighthouse.", maxRetries: 0, temperature: 0, maxOutputTokens: 64 };
const city = { type: "string", enum: ["London", "Paris"] };
const parameters = jsonSchema({ type: "object", properties: { city }, required: ["city"], additionalProperties: false });

const checks = {
  async text(model) {
    const { text, usage } = await generateText({ ...settings, model });
    assert.ok(text.length > 0);
    assert.ok(usage.inputTokens > 0 && usage.outputTokens > 0);
  },
  async stream(model) {
    const whole = await generateText({ ...settings, model });
    const parts = [];
    for await (const part of streamText({ ...settings, model }).fullStream) parts.push(part);
    const errors = parts.filter((part) => part.type === "error");
    assert.deepEqual(errors, []);
    assert.equal(parts.filter((part) => part.type === "text-delta").map((part) => part.text).join(""), whole.text);
    assert.ok(parts.at(-1).totalUsage.outputTokens > 0);
  },
  async tool(model) {
    const tools = { weather: tool({ description: "The weather in a city", inputSchema: parameters }) };
    const { toolCalls, finishReason } = await generateText({ ...settings, model, tools, toolChoice: "required" });
    assert.equal(toolCalls.length, 1);
    assert.ok(["London", "Paris"].includes(toolCalls[0].input.city));
    assert.equal(finishReason, "tool-calls");
  },
  async object(model) {
    const { object } = await generateObject({ ...settings, model, schema: parameters });
    assert.ok(["London", "Paris"].includes(object.city));
  },
};

await report(checks);
