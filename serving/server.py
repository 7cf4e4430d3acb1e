"""An image server that follows the registry: ``python -m serving.server spare.canvas.neon-lines --base canvas``.

==================== =================================================================================================
``POST /generate``   ``{"prompt": "...", "seed": 0}`` -> PNG; the header ``X-Adapter-Version`` says what drew it
``GET /ready``       200 if the champion's adapter is on, else 503 with the reason: a readiness probe
``GET /live``        200: a liveness probe
``GET /metrics``     for Prometheus
``POST /webhook``    MLflow's ``model_version_alias.created`` and ``.deleted``, signed: look now, not in a few seconds
==================== =================================================================================================

One picture is drawn at a time. Of further requests some wait (``--waiting``), the rest is answered 429 with the seconds
after which to try again; a request whose sender went away is given up. Probes are answered meanwhile.

MLflow is where MLFLOW_TRACKING_URI says; the promotion log, where ``--store`` or SPARE_STORE does. Secrets are files,
read once: ``--token-file`` what callers of ``/generate`` must bear, ``--webhook-secret-file`` what MLflow signs with.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import hmac
import io
import ipaddress
import logging
import math
import os
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from pydantic import BaseModel, Field

from serving.following import STALE_SECONDS, FollowingPipeline, NotReady, Stopped
from serving.limits import Door
from serving.measures import Measures
from serving.queue import Left, Queue, QueueFull
from spare_core.errors import SpareError
from spare_core.store import open_store

REPLAY_SECONDS = 300
GRACE_SECONDS = 60


class PictureRequest(BaseModel):
    """What to draw."""

    prompt: str = Field(min_length=1, max_length=2000)
    seed: int = Field(0, ge=0, lt=2**63)
    steps: int = Field(20, ge=1, le=100)
    guidance: float = Field(4.0, ge=0.0, le=30.0)


def build_app(
    live: FollowingPipeline, waiting: int = 8, every: float = 10.0, token: str = "", webhook_secret: str = ""
) -> FastAPI:
    """The server of a pipeline that somebody else keeps following.

    Args:
        live: what draws.
        waiting: requests that may wait beside the one that is drawn.
        every: seconds between two looks at the registry, for whoever is told to come again.
        token: what callers of ``/generate`` must bear; empty for whoever asks.
        webhook_secret: what MLflow signs its webhooks with; empty for no webhook.
    """
    app = FastAPI(title=f"pictures by {live.name}", openapi_url=None)
    app.add_middleware(Door, tokens={"/generate": token} if token else {})
    queue = Queue(waiting)
    measures = Measures(live, queue)

    @app.post("/generate")
    async def generate(asked: PictureRequest, request: Request) -> Response:
        begun = time.monotonic()
        outcome = "failed"
        try:
            if (trouble := live.trouble) is not None:
                raise NotReady(trouble)
            png, version = await queue.run(partial(draw_png, live, asked), partial(disconnected, request))
            outcome = "drawn"
            measures.seconds.observe(time.monotonic() - begun)
            return Response(png, media_type="image/png", headers={"X-Adapter-Version": str(version)})
        except NotReady as error:
            outcome = "not_ready"
            raise HTTPException(503, str(error), {"Retry-After": str(math.ceil(every))}) from None
        except QueueFull as error:
            outcome = "busy"
            raise HTTPException(429, str(error), {"Retry-After": str(error.retry_after)}) from None
        except (Left, Stopped):
            outcome = "left"
            return Response(status_code=499)  # nobody reads it
        finally:
            measures.outcomes.labels(outcome).inc()

    @app.get("/ready")
    async def ready(response: Response) -> dict[str, Any]:
        trouble = live.trouble
        response.status_code = 200 if trouble is None else 503
        return {"version": live.version, "problem": trouble, "registry_seen_seconds_ago": round(live.age, 1)}

    @app.get("/live")
    async def alive() -> dict[str, str]:
        return {"name": live.name, "base_digest": live.base_digest}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(measures.as_text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.post("/webhook", status_code=202)
    async def webhook(request: Request) -> None:
        if not webhook_secret or not signed(await request.body(), dict(request.headers), webhook_secret, time.time()):
            raise HTTPException(403, "the signature is not that of MLflow's webhook")
        live.wake()  # what it says is not believed: the registry is asked

    return app


def draw_png(live: FollowingPipeline, asked: PictureRequest, stop: threading.Event) -> tuple[bytes, int | None]:
    """A picture's bytes, and the version that drew it."""
    image, version = live.draw(
        asked.prompt, asked.seed, stop, num_inference_steps=asked.steps, guidance_scale=asked.guidance
    )
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue(), version


async def disconnected(request: Request) -> None:
    """Ends when the sender of a request that was read has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def signed(body: bytes, headers: dict[str, str], secret: str, now: float) -> bool:
    """Whether MLflow sent this, lately: HMAC-SHA256 of ``delivery id.timestamp.body``."""
    delivery, stamp = headers.get("x-mlflow-delivery-id", ""), headers.get("x-mlflow-timestamp", "")
    if not stamp.isdigit() or abs(now - int(stamp)) > REPLAY_SECONDS:
        return False
    mac = hmac.new(secret.encode(), f"{delivery}.{stamp}.".encode() + body, hashlib.sha256).digest()
    expected = f"v1,{base64.b64encode(mac).decode()}"
    return hmac.compare_digest(expected.encode(), headers.get("x-mlflow-signature", "").encode())


def main() -> None:
    """Follow and serve."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("name", help="registered model, e.g. spare.canvas.neon-lines")
    parser.add_argument("--base", required=True, help="canvas, a diffusers directory, s3://bucket/prefix or a hub id")
    parser.add_argument("--device", default="cpu", help="cuda on a GPU")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two looks at the registry")
    parser.add_argument("--stale-after", type=float, default=STALE_SECONDS,
                        help="seconds without the registry after which nothing is drawn")  # fmt: skip
    parser.add_argument("--waiting", type=int, default=8, help="requests that may wait for their turn")
    parser.add_argument("--store", default=os.environ.get("SPARE_STORE", ""),
                        help="of the promotion log (SPARE_STORE); without it the alias alone is believed")  # fmt: skip
    parser.add_argument("--token-file", type=Path, help="holds what callers of /generate must bear")
    parser.add_argument("--no-token", action="store_true", help="whoever reaches it may have pictures drawn")
    parser.add_argument("--webhook-secret-file", type=Path, help="holds what MLflow signs its webhooks with")
    given = parser.parse_args()
    if given.waiting < 0 or given.every <= 0 or given.stale_after <= given.every:
        parser.error("--waiting is 0 or more, --every more than 0, --stale-after more than --every")
    if not (given.token_file or given.no_token or _is_loopback(given.host)):
        parser.error(f"--host {given.host} can be reached from elsewhere: give --token-file FILE, or say --no-token")
    token, secret = (_secret(parser, path) for path in (given.token_file, given.webhook_secret_file))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        store = open_store(given.store) if given.store else None
        live = FollowingPipeline(given.name, given.base, given.device, store, given.stale_after)
    except SpareError as error:
        raise SystemExit(f"error: {error}") from None
    if store is None:
        logging.warning("no --store: whoever may move the alias in MLflow decides what is drawn with")
    threading.Thread(target=live.follow, args=(given.every,), daemon=True).start()
    app = build_app(live, given.waiting, given.every, token, secret)
    uvicorn.run(app, host=given.host, port=given.port, timeout_graceful_shutdown=GRACE_SECONDS)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _secret(parser: argparse.ArgumentParser, path: Path | None) -> str:
    """What a file holds, without the line's end; empty for no file."""
    if path is None:
        return ""
    try:
        secret = path.read_text("ascii").strip()
    except (OSError, ValueError) as error:
        parser.error(f"{path} cannot be read: {error}")
    if len(secret) < 16:
        parser.error(f"{path} holds {len(secret)} characters; a secret has 16 or more")
    return secret


if __name__ == "__main__":
    main()
