"""The same without the client API: actor messages, sent to a model's address.

``ask`` waits for one answer with the message's ``ref``; ``stream`` yields all of them. Any actor of
the tree accepts messages this way; ``actors/messages/`` and ``supervision/messages/`` list them.
"""

import tempfile

from actors.messages import (
    Accepted,
    Complete,
    Completed,
    CompletionFailed,
    TextPrompt,
    TokensDelivered,
)
from native.params import SamplingParams
from runtime import Node
from supervision.messages import Located, ReportStatus, WhereIs, new_ref


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as cache_dir,
        Node.start({"demo": None}, cache_dir=cache_dir, cache_ram="64MiB") as node,
    ):
        line = node.connection
        found = line.ask("registry", WhereIs(new_ref(), "model:demo"), timeout_s=5)
        if not isinstance(found, Located) or found.entry.address is None:
            raise SystemExit("the model is not there")
        request = Complete(
            ref=new_ref(),
            model="demo",
            prompt=TextPrompt("Once upon a time"),
            max_tokens=24,
            sampling=SamplingParams(temperature=0.8, seed=5),
        )
        for message in line.stream(found.entry.address, request, idle_timeout_s=30):
            match message:
                case Accepted(_, request_id):
                    print(f"accepted as {request_id}")
                case TokensDelivered(_, _, _, text):
                    print(text, end="", flush=True)
                case Completed():
                    print(f"\n{message.finish_reason.value}, {message.usage}, {message.cache}")
                    break
                case CompletionFailed(_, reason, detail):
                    raise SystemExit(f"{reason.value}: {detail}")
        report = line.ask("cache_meta", ReportStatus(new_ref()), timeout_s=5)
        print(report.status["tiers"])


if __name__ == "__main__":
    main()
