"""The page in a real browser, on a real node: what each pane shows, and that it is safe to use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import runtime.embedded
from runtime.gateway.keys import new_key
from tests.support import hub as hubs
from tests.support.browser import Watched, axe, chromium, launched
from tests.support.gateways import Gateway, gateway_node
from tests.support.runtime_nodes import LeakCheck, pid_of
from tests.support.waiting import eventually

pytestmark = pytest.mark.system

KEYS = {name: new_key() for name in ("alice", "boss")}
FILE = "".join(
    f'[keys.{name}]\nsha256 = "{digest}"\nadmin = {"true" if name == "boss" else "false"}\n'
    for name, (_, digest) in KEYS.items()
)
PANES = ("Tree", "Tiers", "Requests", "Why", "Chat", "Models")
WAIT_MS = 60_000
STORY = "org/story-GGUF"
EVIL = "<img src=x onerror=window.bad=1>"
RULES = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    chromium()  # before a node is started for nothing
    folder = tmp_path_factory.mktemp("page")
    keys_file = folder / "keys.toml"
    keys_file.write_text(FILE)
    with (
        hubs.serving() as hub,
        pytest.MonkeyPatch.context() as patch,
        LeakCheck() as leaks,
    ):
        hub.repos[STORY] = hubs.Repo({"story-Q4_K_M.gguf": runtime.embedded.path().read_bytes()})
        patch.setenv("HF_ENDPOINT", hub.url)
        patch.delenv("HF_HUB_OFFLINE", raising=False)
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        patch.setenv("LLAMA_ACTORS_STORE", str(folder / "store"))
        with gateway_node(folder, keys_file=str(keys_file), prompts=True) as found:
            leaks.watch(found.node)
            yield found
            leaks.watch(found.node)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as found:
        yield found


class Pages:
    """Opens pages, each as a key."""

    def __init__(self, browser: Any, gateway: Gateway) -> None:
        self.gateway = gateway
        self.seen = Watched(gateway.url)
        self._browser = browser
        self._contexts: list[Any] = []

    def open(self, key: str = "boss", **options: Any) -> Any:
        context = self._browser.new_context(**options)
        context.set_default_timeout(WAIT_MS)
        self._contexts.append(context)
        page = context.new_page()
        self.seen.watch(page)
        if key:
            secret = KEYS[key][0]
            page.add_init_script(f"sessionStorage.setItem('llama-actors-key', '{secret}')")
        page.goto(f"{self.gateway.url}/")
        return page

    def close(self) -> None:
        for context in self._contexts:
            context.close()


@pytest.fixture
def pages(browser: Any, gateway: Gateway) -> Iterator[Pages]:
    """Nothing that a test opens may ask another origin, or write an error to the console."""
    found = Pages(browser, gateway)
    yield found
    found.close()
    assert found.seen.elsewhere == []
    assert found.seen.troubles == []


def chat(gateway: Gateway, text: str, key: str = "alice", agent: str = "sdk/1") -> str:
    messages = [{"role": "system", "content": "Be brief. " * 20}, {"role": "user", "content": text}]
    headers = {"authorization": f"Bearer {KEYS[key][0]}", "user-agent": agent}
    body = {"messages": messages, "max_tokens": 8, "temperature": 0}
    answer = gateway.post("/v1/chat/completions", body, **headers)
    assert answer.status == 200, answer.body
    return str(answer.headers["x-request-id"])


def show(page: Any, pane: str) -> Any:
    page.get_by_role("tab", name=pane).click()
    return page.get_by_role("tabpanel", name=pane)


def test_every_pane_shows_the_node(pages: Pages) -> None:
    chat(pages.gateway, "Tell me about the sea")
    chat(pages.gateway, "Tell me about a hill")
    page = pages.open()
    tree = page.get_by_role("tabpanel", name="Tree")
    row = tree.get_by_role("row", name="model:demo")
    row.wait_for()
    pid = pid_of(pages.gateway.node, "model:demo")
    assert str(pid) in row.inner_text()
    assert "MiB" in row.inner_text()
    tiers = show(page, "Tiers")
    tiers.get_by_role("heading", name="RAM").wait_for()
    assert "of 64.0 MiB" in tiers.inner_text()
    assert "Live context: demo" in tiers.inner_text()
    requests = show(page, "Requests")
    requests.get_by_role("option").first.wait_for()
    assert "sdk/1" in requests.inner_text()
    requests.get_by_role("option").first.click()
    detail = requests.get_by_role("complementary", name="Request")
    assert "/v1/chat/completions" in detail.inner_text()
    assert detail.get_by_text("Prefill", exact=True).is_visible()
    detail.get_by_role("button", name="Why").click()
    why = page.get_by_role("tabpanel", name="Why")
    why.get_by_text("messages[1].content", exact=True).wait_for()
    why.get_by_role("heading", name="Where it differs").wait_for()
    assert "Tell me about a hill" in why.locator(".around").inner_text()
    assert why.get_by_role("button", name="system (messages[0])").is_visible()
    models = show(page, "Models")
    models.get_by_role("heading", name="demo", exact=True).wait_for()
    assert "4,096 tokens" in models.inner_text()


def test_a_model_is_fetched_loaded_and_unloaded(pages: Pages) -> None:
    page = pages.open()
    models = show(page, "Models")
    models.get_by_label("Model of the hub").fill(STORY)
    models.get_by_role("button", name="Fetch").click()
    path = models.get_by_label("Path")
    eventually(lambda: path.input_value().endswith(".gguf"), what="it is fetched")
    name = models.get_by_label("Id", exact=True).input_value()
    models.get_by_role("button", name="Load", exact=True).click()
    models.get_by_role("heading", name=name, exact=True).wait_for()
    models.get_by_role("button", name=f"Unload {name}").click()
    page.get_by_role("dialog").get_by_role("button", name="Unload").click()
    models.get_by_role("button", name=f"Unload {name}").wait_for(state="detached")


def test_a_killed_model_heals_on_the_page(pages: Pages) -> None:
    page = pages.open()
    tree = page.get_by_role("tabpanel", name="Tree")
    row = tree.get_by_role("row", name="model:demo")
    row.wait_for()
    before = pid_of(pages.gateway.node, "model:demo")
    row.get_by_role("button", name="Kill model:demo").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    assert pid_of(pages.gateway.node, "model:demo") == before, "it was not confirmed"
    row.get_by_role("button", name="Kill model:demo").click()
    page.get_by_role("dialog").get_by_role("button", name="Kill it").click()
    log = tree.get_by_role("log")
    log.get_by_text("model:demo was killed from this page").wait_for()
    log.get_by_text("model:demo runs again, as incarnation").first.wait_for()
    page.locator("tr[data-healed]", has_text="model:demo").wait_for()
    assert "killed" in row.inner_text()
    assert pid_of(pages.gateway.node, "model:demo") != before


def test_a_chat_is_watched_while_it_runs(pages: Pages) -> None:
    talk, watch = pages.open(key="alice"), pages.open()
    panel = show(talk, "Chat")
    panel.get_by_label("Model").locator("option", has_text="demo").wait_for(state="attached")
    panel.get_by_label("Most tokens").fill("2000")
    panel.get_by_label("Temperature").fill("0")
    panel.get_by_label("Message").fill("Tell me a long story.")
    requests = show(watch, "Requests")
    panel.get_by_label("Message").press("Enter")
    option = requests.get_by_role("option", name="alice").filter(has_text="decode")
    option.wait_for()
    assert watch.locator("#running-count").inner_text() == "1"
    panel.get_by_role("button", name="Stop").or_(panel.get_by_text("tokens/s")).first.click()
    panel.get_by_role("button", name="Why").wait_for()
    assert panel.locator(".turn .text").last.inner_text(), "it was shown as it came"
    requests.get_by_role("option").first.filter(has_not_text="decode").wait_for()


def test_a_thousand_requests_are_listed_and_scrolled_smoothly(pages: Pages) -> None:
    page = pages.open()
    show(page, "Requests")
    found = page.evaluate(LIST_OF_A_THOUSAND)
    assert found["n"] == 1000
    assert found["rows"] < 60, "only what is in sight is in the document"
    assert found["last"] == "model-0", "the end of the list can be reached"
    times = sorted(found["times"])
    assert len(times) >= 40
    # What it costs where nothing else has the processor; a frame at 60 Hz has 16 ms.
    assert times[len(times) // 10] < 8, times


LIST_OF_A_THOUSAND = """
async () => {
  const { Store } = await import('/llama/ui/store.js');
  const { RequestsPane } = await import('/llama/ui/requests.js');
  const store = new Store();
  const root = document.createElement('section');
  document.getElementById('requests').replaceChildren(root);
  const pane = new RequestsPane(root, { store, showWhy() {} });
  const record = (at, i) => {
    const reply = {
      index: 0, phase: i % 7 ? 'done' : 'decode', place: null, prompt_tokens: 900 + i,
      read_tokens: 900 + i, cached_tokens: 400, generated_tokens: at, accepted_at_ms: 3,
      first_at_ms: 40, last_at_ms: 400, pauses: i % 50 ? [] : [[90, 30]],
      finish_reason: i % 7 ? 'stop' : null, queue_ms: 2, lookup_ms: 1, restore_ms: 4,
      prefill_ms: 30, decode_ms: 360, aside_ms: 0, drafted_tokens: 0, draft_hits: 0,
      hit: 'partial', source: 'ram', miss_reason: null, part: null,
    };
    return {
      id: `req_${i}`, at: 1.7e9 + i, worker: 0, method: 'POST', route: '/v1/chat/completions',
      api: 'openai', key: 'alice', client: 'sdk/1', took_ms: 420, answer_id: '',
      model: `model-${i}`, is_stream: true, status: 200, outcome: i % 7 ? 'ok' : null,
      error: null, n_taken: 0, rules: [], replies: [reply],
    };
  };
  const some = (n, make) => Array.from({ length: n }, (_, i) => make(i));
  const frame = () => new Promise((resolve) => requestAnimationFrame(resolve));
  store.setRequests({ all: true, requests: some(1000, (i) => record(1, i)), gone: [] });
  pane.draw();
  const times = [];
  for (let at = 0; at < 50; at += 1) {
    const began = performance.now();
    store.setRequests({ all: false, requests: some(40, (i) => record(at, 7 * i)), gone: [] });
    pane.list.scrollTop = at * 1000;
    pane.draw();
    times.push(performance.now() - began);
    await frame();
  }
  pane.list.scrollTop = 1e9;
  await frame();
  await frame();
  const rows = [...pane.list.querySelectorAll('[role=option]')];
  const last = rows.find((row) => row.getAttribute('aria-posinset') === '1000');
  return {
    n: Number(rows[0].getAttribute('aria-setsize')), rows: rows.length, times,
    last: last?.querySelector('.model').textContent,
  };
}
"""


def test_prompts_are_hidden_from_other_keys(pages: Pages) -> None:
    secret = "marzipan"
    chat(pages.gateway, f"What is {secret}?", key="boss")
    name = chat(pages.gateway, f"Where is {secret}?")
    page = pages.open(key="alice")
    requests = show(page, "Requests")
    requests.get_by_role("option").first.wait_for()
    requests.get_by_label("Show only").fill("boss")
    requests.get_by_text("None of them").wait_for()
    requests.get_by_label("Show only").fill(name)
    requests.get_by_role("option").first.click()
    requests.get_by_role("button", name="Why").click()
    why = page.get_by_role("tabpanel", name="Why")
    why.get_by_text("Parts and texts are shown to administrators.").wait_for()
    for pane in PANES:
        show(page, pane)
        assert secret not in page.locator("body").inner_text()
    assert show(page, "Tree").get_by_text("Only for administrators").is_visible()


def test_texts_of_others_are_shown_as_texts(pages: Pages) -> None:
    chat(pages.gateway, f"Say {EVIL} please", agent=EVIL)
    chat(pages.gateway, f"Say {EVIL} now", agent=EVIL)
    page = pages.open()
    requests = show(page, "Requests")
    option = requests.get_by_role("option").first
    option.wait_for()
    option.click()
    requests.get_by_text(EVIL).first.wait_for()
    requests.get_by_role("button", name="Why").click()
    why = page.get_by_role("tabpanel", name="Why")
    why.get_by_role("button", name="user (messages[1])").click()
    assert EVIL in why.locator(".part-text").inner_text()
    panel = show(page, "Chat")
    panel.get_by_label("Most tokens").fill("4")
    panel.get_by_label("Message").fill(f"{EVIL}<b>bold</b>")
    panel.get_by_role("button", name="Send").click()
    panel.get_by_role("button", name="Why").wait_for()
    assert f"{EVIL}<b>bold</b>" in panel.inner_text()
    models = show(page, "Models")
    models.get_by_label("Id").fill(EVIL)
    models.get_by_label("Path").fill(f"/nowhere/{EVIL}")
    models.get_by_role("button", name="Load", exact=True).click()
    models.get_by_role("alert").filter(has_text="nowhere").or_(
        models.get_by_role("alert").filter(has_text="img")
    ).wait_for()
    assert page.evaluate(
        "window.bad === undefined && document.querySelectorAll('img').length === 0"
    )
    pages.seen.troubles = [one for one in pages.seen.troubles if "400" not in one]


def test_a_key_is_asked_for_and_kept_in_the_tab_alone(pages: Pages) -> None:
    page = pages.open(key="")
    dialog = page.get_by_role("dialog", name="Key")
    dialog.wait_for()
    dialog.get_by_label("Key").fill("wrong")
    dialog.get_by_role("button", name="Use this key").click()
    dialog.get_by_text("does not know that key").wait_for()
    dialog.get_by_label("Key").fill(KEYS["boss"][0])
    dialog.get_by_role("button", name="Use this key").click()
    page.get_by_role("row", name="model:demo").wait_for()
    kept = "[JSON.stringify(localStorage), document.cookie, location.href].join()"
    assert KEYS["boss"][0] not in page.evaluate(kept)
    page.reload()
    page.get_by_role("row", name="model:demo").wait_for()
    pages.seen.troubles = [one for one in pages.seen.troubles if "401" not in one]


def test_the_page_works_with_the_keyboard_alone(pages: Pages) -> None:
    for at in range(3):
        chat(pages.gateway, f"Count to {at}")
    page = pages.open()
    page.get_by_role("row", name="model:demo").wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.get_by_role("tab", name="Tree").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.get_by_role("tab", name="Requests").get_attribute("aria-selected") == "true"
    page.get_by_role("option").first.wait_for()
    page.get_by_role("listbox", name="Requests").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    detail = page.get_by_role("complementary", name="Request")
    detail.wait_for()
    chosen = page.get_by_role("option", selected=True)
    assert chosen.get_attribute("aria-posinset") == "2"
    focused = page.get_by_role("listbox", name="Requests").get_attribute("aria-activedescendant")
    assert focused == chosen.get_attribute("id")
    page.keyboard.press("Escape")
    detail.wait_for(state="hidden")
    page.get_by_role("tab", name="Requests").focus()
    page.keyboard.press("Home")
    page.get_by_role("button", name="Kill registry").focus()
    page.keyboard.press("Enter")
    page.get_by_role("dialog").wait_for()
    assert page.evaluate("document.activeElement.textContent") == "Cancel"
    page.keyboard.press("Escape")
    page.get_by_role("dialog").wait_for(state="hidden")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Kill registry"


def test_a_phone_shows_every_pane_without_scrolling_sideways(pages: Pages) -> None:
    chat(pages.gateway, "Hello from a phone")
    page = pages.open(viewport={"width": 360, "height": 740})
    page.get_by_role("row", name="model:demo").wait_for()
    for pane in PANES:
        show(page, pane)
        if pane == "Requests":
            page.get_by_role("option").first.click()
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 360, pane


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_rules_of_accessibility_hold_in_every_pane(
    pages: Pages, request: pytest.FixtureRequest, scheme: str
) -> None:
    source = axe(Path(request.config.cache.mkdir("axe")))
    chat(pages.gateway, "Hello one")
    chat(pages.gateway, "Hello two")
    page = pages.open(color_scheme=scheme, reduced_motion="reduce")
    page.get_by_role("row", name="model:demo").wait_for()
    page.evaluate(source)
    for pane in PANES:
        show(page, pane)
        if pane == "Requests":
            page.get_by_role("option").first.click()
        if pane == "Why":
            page.get_by_role("button", name="system (messages[0])").click()
        rules = list(RULES if scheme == "light" else ("color-contrast",))
        where = "document" if pane == "Tree" else f"document.getElementById('{pane.lower()}')"
        options = {"runOnly": rules, "resultTypes": ["violations"]}
        found = page.evaluate(f"(options) => axe.run({where}, options)", options)
        wrong = [
            (one["id"], one["help"], [node["html"][:160] for node in one["nodes"][:3]])
            for one in found["violations"]
        ]
        assert wrong == [], pane


def test_the_theme_can_be_chosen_and_stays(pages: Pages) -> None:
    page = pages.open(color_scheme="light")
    page.get_by_role("button", name="Theme: as the system").click()
    page.get_by_role("button", name="Theme: light").click()
    page.get_by_role("button", name="Theme: dark").wait_for()
    colour = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(colour) == "rgb(13, 17, 23)"
    page.reload()
    page.get_by_role("button", name="Theme: dark").wait_for()
    assert page.evaluate(colour) == "rgb(13, 17, 23)"


def test_the_page_opens_its_stream_again_when_its_worker_is_killed(pages: Pages) -> None:
    page = pages.open()
    page.get_by_role("row", name="model:demo").wait_for()
    page.get_by_role("button", name="Kill http:0").click()
    page.get_by_role("dialog").get_by_role("button", name="Kill it").click()
    page.get_by_role("log").get_by_text("http:0 runs again, as incarnation").first.wait_for()
    assert page.locator("#link").get_attribute("data-state") == "live"
    pages.seen.troubles = [one for one in pages.seen.troubles if "net::ERR" not in one]
