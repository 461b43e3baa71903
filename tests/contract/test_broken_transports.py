"""Transports that are each wrong in one way: the contract must fail every one of them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest

from fractal.api.errors import BackendError, InvalidInput
from fractal.api.transport import RouteKind
from fractal.builtin.direct import (
    device,
    gateway,
    hello,
    http1,
    peers,
    proxy,
    sockets,
    udp,
    wire,
)
from fractal.testing.direct_bed import direct_bed
from fractal.testing.suite import broken, failures, run_suites
from fractal.testing.transport import TransportContract
from fractal.testing.transport_parts import Bed

Patch = pytest.MonkeyPatch


def restarts_at_each_apply(bed: Any, patch: Patch) -> None:
    apply = bed.gateway.forward

    async def forward(peers: Any, targets: Any) -> None:
        await apply([], [])
        await apply(peers, targets)

    patch.setattr(bed.gateway, "forward", forward)


def keeps_connections_to_the_old_device(_bed: Any, patch: Patch) -> None:
    patch.setattr(gateway.Gateway, "_close_replaced", lambda *_: None)


def refuses_instead_of_holding(bed: Any, patch: Patch) -> None:
    apply = bed.gateway.forward
    patch.setattr(
        bed.gateway, "forward", lambda peers, targets: apply(peers, [t for t in targets if t.device])
    )


def holds_for_ever(bed: Any, patch: Patch) -> None:
    patch.setattr(
        bed.gateway._gateway, "_config", dataclasses.replace(bed.gateway._gateway._config, hold=3600.0)
    )
    bed.hold = 0.1


def gives_up_on_a_device_that_is_late(_bed: Any, patch: Patch) -> None:
    reach = gateway.Gateway._try

    async def once(self: Any, session: Any, target: Any, greeting: bytes) -> Any:
        try:
            return await reach(self, session, target, greeting)
        except (BackendError, OSError):
            session.task.cancel()
            raise

    patch.setattr(gateway.Gateway, "_try", once)


def serves_any_host(bed: Any, patch: Patch) -> None:
    patch.setattr(http1, "host_of", lambda _request: bed.names[0])


def believes_the_client(_bed: Any, patch: Patch) -> None:
    patch.setattr(http1, "_tells_origin", lambda _name: False)


def tells_the_first_spelling_only(_bed: Any, patch: Patch) -> None:
    patch.setattr(http1, "_tells_origin", lambda name: name.lower() == b"x-forwarded-for")


def gives_its_own_address_for_the_clients(_bed: Any, patch: Patch) -> None:
    encode = proxy.encode
    patch.setattr(
        proxy,
        "encode",
        lambda header: encode(dataclasses.replace(header, client=header.client and ("127.0.0.1", 1))),
    )


def knows_the_common_methods_only(_bed: Any, patch: Patch) -> None:
    patch.setattr(
        http1, "_TOKEN", re.compile(rb"GET|PUT|POST|HEAD|DELETE|OPTIONS|[A-Za-z][a-z_A-Z0-9-]*[a-z]")
    )


def tidies_the_path(_bed: Any, patch: Patch) -> None:
    parse = http1.parse_request
    patch.setattr(
        http1,
        "parse_request",
        lambda head: dataclasses.replace(r := parse(head), target=unquote_to_bytes(r.target)),
    )


def loses_the_end_of_large_bodies(_bed: Any, patch: Patch) -> None:
    passing = wire.Wire._pass_bytes

    async def cut(self: Any, count: int, send: Any) -> None:
        sent = 0

        async def some(data: bytes) -> None:
            nonlocal sent
            await send(data if sent < 1 << 20 else b"\0" * len(data))
            sent += len(data)

        await passing(self, count, some)

    patch.setattr(wire.Wire, "_pass_bytes", cut)


def swallows_interim_answers(_bed: Any, patch: Patch) -> None:
    forwarded = http1.forwarded_response
    patch.setattr(
        http1, "forwarded_response", lambda r, close: b"" if r.status == 100 else forwarded(r, close=close)
    )


def knows_no_websocket(_bed: Any, patch: Patch) -> None:
    patch.setattr(http1, "wants_websocket", lambda _request: False)


def compares_names_byte_by_byte(_bed: Any, patch: Patch) -> None:
    patch.setattr(hello, "normal_host", lambda name: name)


def wants_the_hello_in_one_piece(_bed: Any, patch: Patch) -> None:
    feed = hello.HelloReader.feed

    def whole(self: Any, data: bytes) -> bytes:
        if (body := feed(self, data)) is None:
            raise InvalidInput("incomplete")
        return body

    patch.setattr(hello.HelloReader, "feed", whole)


def leads_unknown_names_somewhere(bed: Any, patch: Patch) -> None:
    patch.setattr(gateway, "server_name", lambda _body: bed.names[0])
    patch.setattr(device, "normal_host", lambda _name: bed.names[0])


def answers_one_client_at_a_time(_bed: Any, patch: Patch) -> None:
    turn = asyncio.Lock()
    run = sockets.Listener._run

    async def in_turn(self: Any, session: Any) -> None:
        async with turn:
            await run(self, session)

    patch.setattr(sockets.Listener, "_run", in_turn)


def lets_removed_gateways_in(bed: Any, patch: Patch) -> None:
    for opened in bed.devices.values():
        apply = opened.serve

        async def serve(gateways: Any, routes: Any, apply: Any = apply) -> None:
            if gateways:
                await apply(gateways, routes)

        patch.setattr(opened, "serve", serve)


def keeps_removed_routes(bed: Any, patch: Patch) -> None:
    for opened in bed.devices.values():
        apply = opened.serve

        async def serve(gateways: Any, routes: Any, apply: Any = apply) -> None:
            if routes:
                await apply(gateways, routes)

        patch.setattr(opened, "serve", serve)


def keeps_removed_targets(_bed: Any, patch: Patch) -> None:
    table = gateway._table
    known: dict[str, Any] = {}

    def never_forgets(targets: Any) -> Any:
        found, problems = table(targets)
        known.update(found)
        return dict(known), problems

    patch.setattr(gateway, "_table", never_forgets)


def is_silent_about_ports(bed: Any, patch: Patch) -> None:
    apply = bed.gateway.forward

    async def forward(peers: Any, targets: Any) -> None:
        with contextlib.suppress(BackendError):
            await apply(peers, targets)

    patch.setattr(bed.gateway, "forward", forward)


def ends_both_directions_at_once(bed: Any, patch: Patch) -> None:
    end = bed.gateway._gateway
    patch.setattr(end, "_config", dataclasses.replace(end._config, half_open_timeout=0.0))


def mixes_datagram_clients(_bed: Any, patch: Patch) -> None:
    get = udp._Flows.get
    patch.setattr(udp._Flows, "get", lambda self, _key, device: get(self, "one for all", device))


def keeps_whatever_is_not_taken(_bed: Any, patch: Patch) -> None:
    async def send(self: Any, data: bytes) -> None:
        self._writer.write(data)
        await asyncio.sleep(0)

    patch.setattr(wire.Wire, "send", send)


def rounds_truncated_answers_off(_bed: Any, patch: Patch) -> None:
    passing = wire.Wire._pass_chunks

    async def rounded(self: Any, send: Any) -> None:
        try:
            await passing(self, send)
        except EOFError:
            await send(b"0\r\n\r\n")

    patch.setattr(wire.Wire, "_pass_chunks", rounded)


def reports_no_links(bed: Any, patch: Patch) -> None:
    async def links() -> list[Any]:
        return []

    patch.setattr(bed.gateway, "links", links)


def takes_every_peer_for_dead(_bed: Any, patch: Patch) -> None:
    patch.setattr(peers.Health, "alive", lambda _self, _now: None)


def publishes_another_contact_each_time(bed: Any, patch: Patch) -> None:
    asked = iter(range(1000))
    patch.setattr(bed.gateway, "contact", lambda: {"port": str(next(asked))})


def listens_and_calls_that_reachable(bed: Any, patch: Patch) -> None:
    async def probe(_name: str, _kind: RouteKind) -> None:
        _, writer = await asyncio.open_connection(*bed.https)
        writer.close()

    patch.setattr(bed.gateway, "probe", probe)


CAPABILITIES = frozenset({"SupportsProbe"})
MISTAKES: dict[Callable[[Any, Patch], None], str] = {
    restarts_at_each_apply: "test_applying_the_same_again_disturbs_nothing",
    keeps_connections_to_the_old_device: "test_switch_leads_to_the_new_device_and_ends_old_connections",
    refuses_instead_of_holding: "test_connection_is_held_while_the_app_changes_hands",
    holds_for_ever: "test_connection_is_not_held_for_ever",
    gives_up_on_a_device_that_is_late: "test_device_that_does_not_serve_yet_is_waited_for",
    listens_and_calls_that_reachable: "test_probe_gets_through_exactly_when_a_client_does",
    serves_any_host: "test_foreign_host_is_misdirected",
    believes_the_client: "test_app_learns_the_client_and_not_what_the_client_claims",
    tells_the_first_spelling_only: "test_app_learns_the_client_and_not_what_the_client_claims",
    gives_its_own_address_for_the_clients: "test_app_learns_the_client_and_not_what_the_client_claims",
    knows_the_common_methods_only: "test_any_method_with_a_body_goes_through",
    tidies_the_path: "test_any_method_with_a_body_goes_through",
    loses_the_end_of_large_bodies: "test_large_bodies_pass_unchanged_both_ways",
    swallows_interim_answers: "test_body_may_wait_for_a_continue",
    knows_no_websocket: "test_websocket_goes_both_ways",
    compares_names_byte_by_byte: "test_name_may_be_spelt_otherwise",
    wants_the_hello_in_one_piece: "test_hello_may_come_byte_by_byte",
    leads_unknown_names_somewhere: "test_unknown_and_missing_names_reach_nobody",
    answers_one_client_at_a_time: "test_strangers_disturb_nobody",
    lets_removed_gateways_in: "test_stranger_to_the_device_is_not_let_in",
    keeps_removed_routes: "test_removed_route_ends",
    keeps_removed_targets: "test_removed_target_ends",
    is_silent_about_ports: "test_port_in_use_is_named_and_spoils_nothing_else",
    ends_both_directions_at_once: "test_tcp_route_carries_bytes_and_their_end",
    mixes_datagram_clients: "test_udp_route_carries_datagrams_of_each_client",
    keeps_whatever_is_not_taken: "test_slow_reader_holds_back_the_app",
    rounds_truncated_answers_off: "test_truncated_answer_is_not_taken_for_whole",
    reports_no_links: "test_links_tell_the_living_from_the_dead",
    takes_every_peer_for_dead: "test_links_tell_the_living_from_the_dead",
    publishes_another_contact_each_time: "test_contact_is_plain_text_and_stable",
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_mistake_is_found(mistake: Callable[[Any, Patch], None]) -> None:
    @asynccontextmanager
    async def opened(folder: Path) -> AsyncIterator[Bed]:
        async with direct_bed(folder) as bed:
            bed.patience = 2.0
            with pytest.MonkeyPatch.context() as patch:
                mistake(bed, patch)
                yield bed

    expected = MISTAKES[mistake]
    suite = broken(TransportContract, opened, capabilities=CAPABILITIES)
    assert failures(run_suites({"broken": suite}, "-k", expected)["broken"]) == {expected}
