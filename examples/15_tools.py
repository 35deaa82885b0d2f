"""An agent with two tools: the model calls, this program executes, until an answer needs none."""

import json

from runtime import Node

TOWNS = {"Oslo": "snow, -3 degrees", "Rome": "sunny, 24 degrees"}
DO = {"weather": lambda town: TOWNS.get(town, "fog"), "add": lambda a, b: str(a + b)}


def tool(name: str, about: str, **types: str) -> dict:
    keys = {key: {"type": one} for key, one in types.items()}
    schema = {"type": "object", "properties": keys, "required": list(keys)}
    function = {"name": name, "description": about, "parameters": schema}
    return {"type": "function", "function": function}


WEATHER = tool("weather", "The weather in a town", town="string")
ADD = tool("add", "The sum of two numbers", a="integer", b="integer")


def main() -> None:
    with Node.start(cache_ram="64MiB") as node:
        talk: list[dict] = []
        for question in ("What is the weather in Oslo and Rome?", "What is 17 plus 25?", "Hello!"):
            talk.append({"role": "user", "content": question})
            while (done := node.chat("demo", talk, tools=[WEATHER, ADD])).tool_calls:
                talk.append(done.to_message())
                for call in done.tool_calls:
                    said = DO[call.name](**json.loads(call.arguments))
                    print(f"  {call.name} {call.arguments}: {said}")
                    talk.append({"role": "tool", "tool_call_id": call.id, "content": said})
            talk.append(done.to_message())
            print(f"{question} {done.text}")


if __name__ == "__main__":
    main()
