// The AI SDK on the scripted model: it calls a tool, gets the result, and writes a text.

import { generateText, jsonSchema, stepCountIs, streamText, tool } from "ai";
import assert from "node:assert/strict";
import { report } from "./served.mjs";

const printed = "from-tool";
const nothing = jsonSchema({ type: "object", properties: {}, additionalProperties: false });
const two_words = tool({ description: "Gives two words", inputSchema: nothing, execute: async () => printed });
const settings = { prompt: "Which are the two words?", tools: { two_words }, stopWhen: stepCountIs(5), maxRetries: 0 };

function judge(steps, text) {
  assert.equal(text, process.env.CLIENTS_ANSWER);
  assert.deepEqual(steps.map((step) => step.finishReason), ["tool-calls", "stop"]);
  assert.deepEqual(steps[0].toolResults.map((result) => result.output), [printed]);
  const [first, second] = steps.map((step) => step.usage);
  const owed = first.inputTokens + first.outputTokens;
  const cached = second.inputTokenDetails.cacheReadTokens;
  assert.ok(cached >= owed, `${cached} tokens of the second turn were warm, fewer than ${owed}`);
}

await report({
  async job(model) {
    const { steps, text } = await generateText({ ...settings, model });
    judge(steps, text);
  },
  async "streamed-job"(model) {
    const result = streamText({ ...settings, model });
    const errors = [];
    for await (const part of result.fullStream) if (part.type === "error") errors.push(part.error);
    assert.deepEqual(errors, []);
    judge(await result.steps, await result.text);
  },
});
