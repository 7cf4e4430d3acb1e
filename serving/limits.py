"""What is asked of a request before it is read: who sends it, how long it is, and how long it takes to arrive."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from fastapi.responses import JSONResponse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

BODY_BYTES: Final = 64 * 1024
"""Room for the longest prompt with every character escaped, and for MLflow's webhooks."""
BODY_SECONDS: Final = 10.0


class Door:
    """ASGI middleware: 401 without the token that a path asks for, 413 for a body of more than 64 KiB, 408 for one that
    takes longer than ten seconds. Of what is refused no more is read than was needed to refuse it.

    Args:
        app: what lies behind.
        tokens: for a path, the token that its callers must bear (RFC 6750).
        seconds: for a body to arrive in.
    """

    def __init__(self, app: ASGIApp, tokens: Mapping[str, str], seconds: float = BODY_SECONDS) -> None:
        self.app, self.seconds = app, seconds
        self._wanted = {path: f"Bearer {token}".encode() for path, token in tokens.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or whatever else the server has to say to the application."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal, body = await self._examined(scope, receive)
        if refusal is not None:
            await refusal(scope, receive, send)
        elif body is not None:
            await self.app(scope, _replayed(body, receive), send)

    async def _examined(self, scope: Scope, receive: Receive) -> tuple[JSONResponse | None, bytes | None]:
        """What to refuse a request with, or else its body; neither if its sender has gone."""
        headers = dict(scope["headers"])
        wanted = self._wanted.get(scope["path"])
        if wanted is not None and not hmac.compare_digest(headers.get(b"authorization", b""), wanted):
            return _refusal(401, "a bearer token is needed, and this is not it", **{"WWW-Authenticate": "Bearer"}), None
        try:
            return None, await asyncio.wait_for(_read(headers, receive), self.seconds)
        except ValueError:
            return _refusal(413, f"a body may have {BODY_BYTES:,} bytes"), None
        except TimeoutError:
            return _refusal(408, f"a body must be here within {self.seconds:g} seconds"), None


def _refusal(status: int, detail: str, **headers: str) -> JSONResponse:
    # What is left of the body is not waited for.
    return JSONResponse({"detail": detail}, status, {**headers, "Connection": "close"})


async def _read(headers: Mapping[bytes, bytes], receive: Receive) -> bytes | None:
    """The body; None if the sender went away. ValueError if it is too long."""
    if int(headers.get(b"content-length", b"0")) > BODY_BYTES:  # a number: the HTTP parser has read it as one
        raise ValueError
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if len(body) > BODY_BYTES:
            raise ValueError
        if not message.get("more_body", False):
            return bytes(body)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """What hands out a body that was read, and then what comes after it."""
    unread = [body]

    async def replay() -> Message:
        if unread:
            return {"type": "http.request", "body": unread.pop(), "more_body": False}
        return await receive()

    return replay
