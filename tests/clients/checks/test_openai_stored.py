"""Stored responses through openai-python, strict, with ids that the server gave."""

from __future__ import annotations

import openai
import pytest
from served import KEY, MODEL, QUESTION, URL


@pytest.fixture
def client():
    with openai.OpenAI(
        base_url=f"{URL}/v1", api_key=KEY, max_retries=0, _strict_response_validation=True
    ) as client:
        yield client


def test_a_response_is_retrieved_as_it_was_given(client):
    given = client.responses.create(model=MODEL, input=QUESTION, max_output_tokens=16)
    again = client.responses.retrieve(given.id)
    assert again.output_text == given.output_text != ""
    assert again.id == given.id
    assert again.usage == given.usage


def test_events_are_numbered_and_can_be_read_again_from_any_of_them(client):
    events = list(
        client.responses.create(model=MODEL, input=QUESTION, max_output_tokens=16, stream=True)
    )
    assert [e.sequence_number for e in events] == list(range(len(events)))
    assert events[0].type == "response.created"
    assert events[-1].type in ("response.completed", "response.incomplete")
    rest = list(client.responses.retrieve(events[0].response.id, stream=True, starting_after=3))
    assert rest == events[4:]
    deltas = [e.delta for e in events if e.type == "response.output_text.delta"]
    assert "".join(deltas) == events[-1].response.output_text


def test_the_input_of_a_response_is_listed(client):
    given = client.responses.create(model=MODEL, input=QUESTION, max_output_tokens=4)
    items = client.responses.input_items.list(given.id).data
    assert [part.text for item in items for part in item.content] == [QUESTION]


def test_a_conversation_goes_on_from_a_stored_response(client):
    first = client.responses.create(model=MODEL, input=QUESTION, max_output_tokens=8)
    second = client.responses.create(
        model=MODEL, input="And then?", max_output_tokens=8, previous_response_id=first.id
    )
    assert second.previous_response_id == first.id
    assert second.usage.input_tokens > first.usage.input_tokens
    assert second.usage.input_tokens_details.cached_tokens > 0


def test_a_background_response_is_cancelled(client):
    given = client.responses.create(model=MODEL, input=QUESTION, background=True)
    assert given.status in ("queued", "in_progress", "completed", "incomplete")
    ended = client.responses.cancel(given.id)
    assert ended.status in ("cancelled", "completed", "incomplete")


def test_a_deleted_response_is_not_found(client):
    given = client.responses.create(model=MODEL, input=QUESTION, max_output_tokens=4)
    client.responses.delete(given.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(given.id)


def test_a_prompt_beyond_the_context_is_refused_with_its_code(client):
    from served import OVERLONG

    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model=MODEL, input=OVERLONG)
    assert caught.value.code == "context_length_exceeded"
