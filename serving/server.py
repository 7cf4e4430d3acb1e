"""An image server that follows the registry: ``python -m serving.server spare.canvas.neon-lines --base canvas``.

==================== =================================================================================================
``POST /generate``   ``{"prompt": "...", "seed": 0}`` -> PNG; the header ``X-Adapter-Version`` says what drew it
``GET /ready``       200 if the champion's adapter is on, else 503 with the reason: a readiness probe
``GET /live``        200: a liveness probe
``POST /webhook``    MLflow's ``model_version_alias.created`` and ``.deleted``, signed: look now, not in a few seconds
==================== =================================================================================================

MLflow is where MLFLOW_TRACKING_URI says. The webhook's secret comes from WEBHOOK_SECRET; without it there is none.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import hmac
import io
import logging
import os
import threading
import time
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from pydantic import BaseModel, Field

from serving.following import FollowingPipeline
from spare_core.errors import SpareError

REPLAY_SECONDS = 300


class PictureRequest(BaseModel):
    """What to draw."""

    prompt: str = Field(min_length=1, max_length=2000)
    seed: int = Field(0, ge=0, lt=2**63)
    steps: int = Field(20, ge=1, le=100)
    guidance: float = Field(4.0, ge=0.0, le=30.0)


def build_app(live: FollowingPipeline, secret: str) -> FastAPI:
    """The server of a pipeline that somebody else keeps following."""
    app = FastAPI(title=f"pictures by {live.name}")

    @app.post("/generate")
    def generate(asked: PictureRequest) -> Response:
        if live.version is None:
            raise HTTPException(503, live.problem)
        image, version = live.draw(
            asked.prompt, asked.seed, num_inference_steps=asked.steps, guidance_scale=asked.guidance
        )
        content = io.BytesIO()
        image.save(content, "PNG")
        return Response(content.getvalue(), media_type="image/png", headers={"X-Adapter-Version": str(version)})

    @app.get("/ready")
    def ready(response: Response) -> dict[str, Any]:
        response.status_code = 200 if live.problem is None else 503
        age = round(time.monotonic() - live.asked_at, 1) if live.asked_at else None
        return {"version": live.version, "problem": live.problem, "registry_seen_seconds_ago": age}

    @app.get("/live")
    def alive() -> dict[str, str]:
        return {"name": live.name, "base_digest": live.base_digest}

    @app.post("/webhook", status_code=202)
    async def webhook(request: Request) -> None:
        if not secret or not signed(await request.body(), dict(request.headers), secret, time.time()):
            raise HTTPException(403, "the signature is not that of MLflow's webhook")
        live.wake()  # what it says is not believed: the registry is asked

    return app


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
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        live = FollowingPipeline(given.name, given.base, given.device)
    except SpareError as error:
        raise SystemExit(f"error: {error}") from None
    threading.Thread(target=live.follow, args=(given.every,), daemon=True).start()
    uvicorn.run(build_app(live, os.environ.get("WEBHOOK_SECRET", "")), host=given.host, port=given.port)


if __name__ == "__main__":
    main()
