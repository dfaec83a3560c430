"""The official Python client against the real server, in both eras of the protocol."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import anyio
import httpx2
import pytest
from mcp import MCPError
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, Implementation
from sqlalchemy import select

from convene_keys.db.session import db
from convene_keys.models import AuditEvent, Booking
from convene_keys.operations.table import OPERATIONS
from tests.mcp.conftest import Market

ERAS = {"legacy": "2025-11-25", "2026-07-28": "2026-07-28", "auto": "2026-07-28"}
WRITES = {operation.name for operation in OPERATIONS if operation.method != "GET"}
Test = Callable[[Client], Awaitable[None]]


@asynccontextmanager
async def connected(market: Market, secret: str, mode: str = "auto") -> AsyncIterator[Client]:
    headers = {"Authorization": f"Bearer {secret}"}
    who = Implementation(name="test-assistant", version="9.9")
    async with httpx2.AsyncClient(headers=headers, follow_redirects=True) as http:
        transport = streamable_http_client(market.url, http_client=http)
        async with Client(transport, mode=mode, client_info=who, read_timeout_seconds=20) as client:
            yield client


def in_a_thread(run: Callable[[], Awaitable[None]]) -> None:
    """In a thread of its own, since the browser of other tests leaves its loop in this one."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(anyio.run, run).result()


def session(market: Market, secret: str, test: Test, mode: str = "auto") -> None:
    async def run() -> None:
        async with connected(market, secret, mode) as client:
            await test(client)

    in_a_thread(run)


def text_of(result: CallToolResult) -> str:
    (content,) = result.content
    assert content.type == "text"
    return content.text


@pytest.mark.parametrize("mode", ERAS)
def test_tools_are_listed_in_each_era(market: Market, mode: str) -> None:
    async def test(client: Client) -> None:
        assert client.protocol_version == ERAS[mode]
        if mode != "2026-07-28":  # which asks for nothing but what it needs
            assert client.server_info is not None
            assert client.server_info.name == "convene-keys"
            assert "audit log" in (client.instructions or "")
        listed = (await client.list_tools()).tools
        assert [tool.name for tool in listed] == [operation.name for operation in OPERATIONS]
        for tool, operation in zip(listed, OPERATIONS, strict=True):
            assert (tool.title, tool.description) == (operation.title, operation.description)
            assert tool.annotations is not None
            assert tool.annotations.read_only_hint is (tool.name not in WRITES)
            assert tool.annotations.destructive_hint is operation.destructive
            assert tool.annotations.idempotent_hint is operation.idempotent
            assert tool.input_schema["additionalProperties"] is False
            assert "$ref" not in json.dumps([tool.input_schema, tool.output_schema])

    session(market, market.key(), test, mode)


@pytest.mark.parametrize("mode", ERAS)
def test_pending_today_and_approve_a_booking(market: Market, mode: str) -> None:
    """What people ask for first, with every call in the log under the key's name."""

    async def test(client: Client) -> None:
        pending = await client.call_tool("list_bookings", {"status": "pending"})
        assert not pending.is_error
        assert [b["id"] for b in pending.structured_content["data"]] == [3, 2, 1]
        assert json.loads(text_of(pending)) == pending.structured_content
        approved = await client.call_tool("approve_booking", {"id": 2})
        assert approved.structured_content["status"] == "approved"
        left = await client.call_tool("list_bookings", {"status": "pending"})
        assert [b["id"] for b in left.structured_content["data"]] == [3, 1]

    session(market, market.key(), test, mode)
    with market.reading():
        assert db.session.get_one(Booking, (market.organization_id, 2)).status == "approved"
    assert market.calls() == [
        ("booking.listed", "ok", ""),
        ("booking.approved", "ok", "booking 2"),
        ("booking.listed", "ok", ""),
    ]


@pytest.mark.parametrize("mode", ERAS)
def test_every_tool_answers_what_its_schema_says(market: Market, mode: str) -> None:
    """The client checks each structured answer against the tool's output schema."""

    async def test(client: Client) -> None:
        await client.list_tools()
        for operation in OPERATIONS:
            given: dict[str, object] = {"id": 1} if "id" in operation.input.model_fields else {}
            if operation.name == "update_vendor_application":
                given["status"] = "waitlisted"
            if operation.name == "cancel_booking":
                given["id"] = 2
            if operation.name == "decline_booking":
                given["id"] = 3
            result = await client.call_tool(operation.name, given)
            assert not result.is_error, (operation.name, text_of(result))
            assert operation.output.model_validate(result.structured_content)

    session(market, market.key(), test, mode)


@pytest.mark.parametrize("mode", ERAS)
def test_key_that_only_reads_does_not_see_what_changes(market: Market, mode: str) -> None:
    async def test(client: Client) -> None:
        names = {tool.name for tool in (await client.list_tools()).tools}
        assert names == {operation.name for operation in OPERATIONS} - WRITES
        refused = await client.call_tool("approve_booking", {"id": 1})
        assert refused.is_error
        assert "(code: scope_required)" in text_of(refused)
        assert "Ask an organizer for a key that may read and change" in text_of(refused)

    session(market, market.key(scope="read"), test, mode)
    assert market.events()[-1] == ("booking.approved", "denied", "booking 1")
    with market.reading():
        assert db.session.get_one(Booking, (market.organization_id, 1)).status == "pending"


@pytest.mark.parametrize("mode", ERAS)
def test_key_revoked_in_the_middle_of_a_session(market: Market, mode: str) -> None:
    async def test(client: Client) -> None:
        assert not (await client.call_tool("whoami", {})).is_error
        market.revoke_keys()
        for call in (
            client.call_tool("whoami", {}),
            client.call_tool("approve_booking", {"id": 1}),
            client.read_resource("convene://dashboard"),
            client.get_prompt("pending_today"),
        ):
            with pytest.raises(MCPError, match="revoked") as refused:
                await call
            assert refused.value.error.data["code"] == "key_revoked"
            assert refused.value.error.data["status"] == 401

    session(market, market.key(), test, mode)
    assert ("key.refused", "denied", "Claude on laptop") in market.events()
    with market.reading():
        assert db.session.get_one(Booking, (market.organization_id, 1)).status == "pending"


@pytest.mark.parametrize("mode", ERAS)
def test_another_organizations_booking_is_not_there(
    market: Market, elsewhere: Market, mode: str
) -> None:
    with elsewhere.reading():
        theirs = Booking(
            organization_id=elsewhere.organization_id,
            id=77,
            market_date_id=1,
            vendor_id=1,
            amount=1,
        )
        db.session.add(theirs)
        db.session.commit()

    async def test(client: Client) -> None:
        answers = []
        for number in (77, 78):
            for tool in ("get_booking", "approve_booking", "cancel_booking"):
                result = await client.call_tool(tool, {"id": number})
                assert result.is_error
                answers.append(text_of(result).replace(str(number), "N"))
        assert answers[:3] == answers[3:]
        assert "(code: not_found)" in answers[0]
        assert "Look the number up" in answers[0]

    session(market, market.key(), test, mode)
    with elsewhere.reading():
        booking = db.session.get_one(Booking, (elsewhere.organization_id, 77))
        assert booking.status == "pending"
    assert elsewhere.events() == []


@pytest.mark.parametrize("mode", ERAS)
@pytest.mark.parametrize(
    ("tool", "given", "said"),
    [
        ("get_booking", {}, "id: Field required"),
        ("get_booking", {"id": "1"}, "id: Input should be a valid integer"),
        ("get_booking", {"id": True}, "id: Input should be a valid integer"),
        ("get_booking", {"id": 2**40}, "id: Input should be less than or equal"),
        ("get_booking", {"id": 1, "more": 1}, "more: Extra inputs are not permitted"),
        ("list_bookings", {"limit": 1_000}, "limit: Input should be less than or equal to 100"),
        ("list_bookings", {"status": "lost"}, "status: Input should be 'pending'"),
        ("list_bookings", {"date": "tomorrow"}, "date: Write it like 2026-11-24."),
        ("update_vendor_application", {"id": 1, "status": "pending"}, "status: Input should be"),
    ],
)
def test_bad_arguments_are_told_and_change_nothing(
    market: Market, mode: str, tool: str, given: dict[str, object], said: str
) -> None:
    async def test(client: Client) -> None:
        result = await client.call_tool(tool, given)
        assert result.is_error
        assert said in text_of(result)
        assert "Correct these arguments and call the tool again." in text_of(result)
        assert "(code: invalid)" in text_of(result)

    session(market, market.key(), test, mode)
    assert [outcome for _, outcome, _ in market.calls()] == ["failed"]


@pytest.mark.parametrize("mode", ERAS)
def test_unknown_tools_resources_and_prompts(market: Market, mode: str) -> None:
    async def test(client: Client) -> None:
        for call in (
            client.call_tool("drop_tables", {}),
            client.read_resource("convene://secrets"),
            client.get_prompt("jailbreak"),
        ):
            with pytest.raises(MCPError, match="There is no such") as refused:
                await call
            assert refused.value.error.code == -32602

    session(market, market.key(), test, mode)
    assert market.calls() == [
        ("request.unknown", "failed", "tool drop_tables"),
        ("request.unknown", "failed", "resource convene://secrets"),
    ]


@pytest.mark.parametrize("mode", ERAS)
def test_resources_and_prompts(market: Market, mode: str) -> None:
    async def test(client: Client) -> None:
        listed = (await client.list_resources()).resources
        assert [str(r.uri) for r in listed] == ["convene://dashboard", "convene://pending"]
        assert (await client.list_resource_templates()).resource_templates == []
        held = {}
        for resource in listed:
            (content,) = (await client.read_resource(str(resource.uri))).contents
            held[str(resource.uri)] = json.loads(content.text)  # type: ignore[union-attr]
        assert held["convene://dashboard"]["dashboard"]["pending_bookings"] == 3
        pending = held["convene://pending"]
        assert [b["id"] for b in pending["bookings"]["data"]] == [3, 2, 1]
        assert [a["id"] for a in pending["vendor_applications"]["data"]] == [2, 1]
        prompts = (await client.list_prompts()).prompts
        assert [p.title for p in prompts] == ["What’s pending today?", "Prepare Saturday’s market"]
        for prompt in prompts:
            (message,) = (await client.get_prompt(prompt.name)).messages
            assert message.role == "user"
            assert message.content.text.startswith(prompt.title)  # type: ignore[union-attr]
            mentioned = {o.name for o in OPERATIONS if o.name in message.content.text}  # type: ignore[union-attr]
            assert mentioned
            assert not mentioned & WRITES

    session(market, market.key(), test, mode)
    assert [action for action, _, _ in market.calls()] == [
        "dashboard.viewed",
        "booking.listed",
        "application.listed",
    ]


@pytest.mark.parametrize("mode", ["legacy", "auto"])
def test_connecting_is_recorded_with_the_assistants_own_name(market: Market, mode: str) -> None:
    async def test(client: Client) -> None:
        await client.list_tools()

    session(market, market.key(), test, mode)
    assert market.events() == [("key.connected", "ok", "")]
    with market.reading():
        event = db.session.scalars(
            select(AuditEvent).where(AuditEvent.organization_id == market.organization_id)
        ).one()
        assert event.detail == {"client": "test-assistant 9.9"}


def test_key_that_is_unknown_or_missing(market: Market) -> None:
    stranger = "fm_org_" + "0" * 38

    async def test(client: Client) -> None:
        raise AssertionError("nobody gets in")

    for secret in (stranger, "none"):
        with pytest.raises(BaseException) as refused:  # noqa: PT011  a group of the client's
            session(market, secret, test)
        assert "key" in str(innermost(refused.value))


def test_clients_work_side_by_side(market: Market) -> None:
    """Nothing is kept in between, so several clients can't meet each other's answers."""
    secrets = [market.key(f"Key {number}") for number in range(4)]

    async def one(number: int) -> None:
        async with connected(market, secrets[number]) as client:
            for _ in range(5):
                answer = await client.call_tool("whoami", {})
                assert answer.structured_content["key"]["name"] == f"Key {number}"

    async def all_of_them() -> None:
        async with anyio.create_task_group() as group:
            for number in range(4):
                group.start_soon(one, number)

    in_a_thread(all_of_them)


def innermost(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
