// The served model through the providers of the AI SDK, and a report of checks on each.

import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";

const url = process.env.CLIENTS_URL;
const id = process.env.CLIENTS_MODEL;
const v1 = { baseURL: `${url}/v1`, apiKey: "none" };
export const models = {
  compatible: createOpenAICompatible({ name: "served", includeUsage: true, supportsStructuredOutputs: true, ...v1 })(id),
  responses: createOpenAI(v1).responses(id),
  chat: createOpenAI(v1).chat(id),
  anthropic: createAnthropic(v1)(id),
};

// Prints a line "ok    PROVIDER-NAME" or "not ok PROVIDER-NAME: why" for each check.
export async function report(checks) {
  for (const [provider, model] of Object.entries(models)) {
    for (const [name, check] of Object.entries(checks)) {
      try {
        await check(model);
        console.log(`ok    ${provider}-${name}`);
      } catch (error) {
        console.log(`not ok ${provider}-${name}: ${String(error).replaceAll("\n", " ").slice(0, 300)}`);
      }
    }
  }
}
