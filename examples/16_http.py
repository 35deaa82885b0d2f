"""The gateway: any client of OpenAI's API, here one of 20 lines, and a server process that dies."""

import json
import os
import signal
import urllib.request
from collections.abc import Iterator

from runtime import Node, RuntimeConfig
from runtime.settings.gateway import GatewaySettings, Listen
from supervision.ports import free_port


def stream(url: str, **body: object) -> Iterator[str]:
    """The pieces of a chat's reply, as they come."""
    asked = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode())
    with urllib.request.urlopen(asked) as answer:
        for line in answer:
            if line.startswith(b"data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    yield choice["delta"].get("content") or ""


def main() -> None:
    port = free_port()
    gateway = GatewaySettings(listen=(Listen("127.0.0.1", port),))
    with Node.start(cache_ram="64MiB", config=RuntimeConfig(gateway=gateway)) as node:
        asked = [{"role": "user", "content": "Tell a story about a fox."}]
        pieces = stream(
            f"http://127.0.0.1:{port}", model="demo", messages=asked, max_tokens=80, stream=True
        )
        for number, piece in enumerate(pieces):
            print(piece, end="", flush=True)
            if number == 10:
                worker = node.tree().find("http:0")
                os.kill(worker.pid, signal.SIGKILL)
                print(" [kill -9 of the server process] ", end="")
        print()


if __name__ == "__main__":
    main()
