"""The door of the server: who may come in, and what is answered besides viser's own client."""

from __future__ import annotations

import http
import ipaddress
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

import websockets.asyncio.server
from websockets.asyncio.server import ServerConnection
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from gscfd.viewer.page import document

Answer = tuple[str, bytes]
"""Media type and content of a file."""
SAFE = {
    "Content-Security-Policy": "frame-ancestors 'self'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
"""Headers of every answer: no other page may frame the page or embed its files."""
ONE_AT_A_TIME = threading.Lock()


class Door:
    """Answers requests before viser does.

    Browsers send requests of any page to any server, also to one on 127.0.0.1, so that a page elsewhere could press
    every button here. A request is refused if its Host is a name that is not this machine's (a foreign name may point
    to 127.0.0.1), or if its Origin is another page. Programs that are no browsers send no Origin.
    """

    def __init__(self, host: str, title: str):
        """host: that the server listens on. title: of the browser's tab."""
        self.title = title
        self.names = {"localhost", host.lower(), socket.gethostname().lower()}
        self.actions: dict[str, Callable[[str], None]] = {}
        """What a control of the page does, by the name in its data-do; called with its data-value on the server's
        thread, where it must not wait."""
        self.files: Callable[[str], Answer | None] = lambda path: None
        """Returns the file at a path of the page, such as "picture/a-mug-0", or None; also on the server's thread."""
        self.viser: Callable[[ServerConnection, Request], Response | None] | None = None

    def answer(self, connection: ServerConnection, request: Request) -> Response | None:
        """Returns the response to a request, or None for a websocket that may connect."""
        if refusal := self.refusal(request.headers):
            return response(http.HTTPStatus.FORBIDDEN, "text/plain", f"{refusal}\n".encode())
        assert self.viser is not None
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return self.viser(connection, request)
        path, _, query = request.path.partition("?")
        path = unquote(path).strip("/")
        if path == "":
            return response(http.HTTPStatus.OK, "text/html; charset=utf-8", document(self.title))
        if path.startswith("do/"):
            return self.act(path.removeprefix("do/"), unquote(query), request.headers)
        if (file := self.files(path)) is not None:
            return response(http.HTTPStatus.OK, *file)
        return self.viser(connection, request)

    def refusal(self, headers: Headers) -> str:
        """Returns why a request is refused, or ""."""
        hosts, origins = headers.get_all("Host"), headers.get_all("Origin")
        if len(hosts) != 1 or not self.is_here(hosts[0]):
            return f"host: expected this machine's address or name, got {', '.join(hosts) or 'none'}"
        if len(origins) > 1 or any(urlsplit(origin).netloc.lower() != hosts[0].lower() for origin in origins):
            return f"origin: expected the page at {hosts[0]}, got {', '.join(origins)}"
        return ""

    def is_here(self, host: str) -> bool:
        """Returns whether a Host header is an address, or a name of this machine."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
            ipaddress.ip_address(name)
        except ValueError:
            return bool(host) and (name in self.names or name.endswith(".localhost"))
        return True

    def act(self, name: str, value: str, headers: Headers) -> Response:
        """Carries out a control of the page. The header of page.js is required: another page may not send it."""
        if "X-Gscfd" not in headers:
            return response(http.HTTPStatus.FORBIDDEN, "text/plain", b"expected a request of the page\n")
        if name not in self.actions:
            return response(http.HTTPStatus.NOT_FOUND, "text/plain", b"no such control\n")
        self.actions[name](value)
        return response(http.HTTPStatus.OK, "text/plain", b"done\n")


def response(status: http.HTTPStatus, media_type: str, content: bytes) -> Response:
    headers = Headers({"Content-Type": media_type, "Content-Length": str(len(content)), "Connection": "close"} | SAFE)
    headers["Cache-Control"] = "max-age=86400" if media_type.startswith("image/") else "no-store"
    return Response(status.value, status.phrase, headers, content)


@contextmanager
def behind(door: Door) -> Iterator[None]:
    """Puts the door before the server that viser starts within the block.

    viser has no argument for that, so the block stands in for the function by which viser starts it. Raises
    RuntimeError if viser did not start it so: a page without the door must not be served.
    """
    with ONE_AT_A_TIME:
        start = websockets.asyncio.server.serve

        def guarded(*arguments: Any, process_request: Any, **options: Any) -> Any:
            door.viser = process_request
            return start(*arguments, process_request=door.answer, **options)

        websockets.asyncio.server.serve = guarded  # type: ignore[assignment, misc]
        try:
            yield
        finally:
            websockets.asyncio.server.serve = start  # type: ignore[misc]
    if door.viser is None:
        raise RuntimeError("viser: expected a version that serves by websockets.asyncio.server.serve")
