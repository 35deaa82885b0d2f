"""Examples from the source distributions of the three Python SDKs: each ends with exit 0.

Not run are those that need what no local model has: audio, images, the web, a cloud's own
services, WebSockets.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.clients.outcomes import Known, Outcome
from tests.clients.processes import clean, run
from tests.clients.suite import Place, Suite

_DEADLINE_S = 120.0
_AT_ONCE = 2

_FILES = {
    "openai": (
        "demo",
        "httpx2_client",
        "async_demo",
        "streaming",
        "parsing",
        "parsing_stream",
        "parsing_tools",
        "parsing_tools_stream",
        "responses_input_tokens",
        "responses/streaming",
        "responses/streaming_tools",
        "responses/structured_outputs",
        "responses/structured_outputs_tools",
        "responses/background",
        "responses/background_async",
        "responses/background_streaming",
        "responses/background_streaming_async",
    ),
    "anthropic": (
        "messages",
        "messages_stream",
        "message_threads",
        "structured_outputs",
        "structured_outputs_streaming",
        "thinking",
        "thinking_stream",
        "tools",
        "tools_runner",
        "tools_stream",
    ),
    "ollama": (
        "async-chat",
        "async-generate",
        "async-structured-outputs",
        "async-tools",
        "chat",
        "chat-logprobs",
        "chat-stream",
        "create",
        "embed",
        "fill-in-middle",
        "generate",
        "generate-logprobs",
        "generate-stream",
        "gpt-oss-tools",
        "gpt-oss-tools-stream",
        "list",
        "multi-tool",
        "ps",
        "pull",
        "show",
        "structured-outputs",
        "thinking",
        "thinking-generate",
        "thinking-levels",
        "tools",
    ),
}


def _outcomes(place: Place) -> list[Outcome]:
    url = place.server.url
    env = clean(
        place.folder,
        OPENAI_BASE_URL=f"{url}/v1",
        OPENAI_API_KEY="none",
        ANTHROPIC_BASE_URL=url,
        ANTHROPIC_API_KEY="none",
        OLLAMA_HOST=url,
    )

    def one(named: tuple[str, str]) -> Outcome:
        sdk, example = named
        folder: Path = place.installed.sdists[sdk]
        python = place.installed.bin / "python"
        script = folder / "examples" / f"{example}.py"
        ran = run([python, script], env=env, cwd=folder, deadline_s=_DEADLINE_S)
        return Outcome(f"{sdk}/{example}", ran.code == 0, ran.detail)

    wanted = [(sdk, example) for sdk, files in _FILES.items() for example in files]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(one, wanted))


EXAMPLES = Suite(
    name="examples",
    about="examples of openai-python, anthropic-python and ollama-python",
    floor=48,
    known=(
        Known("ollama/create", "models are made by files and settings, not over HTTP"),
        Known("ollama/fill-in-middle", "the embedded model has no tokens for infilling"),
        Known(
            r"ollama/(thinking|thinking-generate)",
            "the embedded model does not think, and the example prints its thoughts",
        ),
    ),
    outcomes=_outcomes,
)
