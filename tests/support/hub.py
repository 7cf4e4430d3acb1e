"""A hub over HTTP, as far as huggingface_hub asks one: which files a model has, and their content."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

COMMIT = "c0ffee" + "0" * 34


class Hub(ThreadingHTTPServer):
    """Serves each model of ``models`` (``org/name`` to a folder) at one commit; ``given`` are the files it gave."""

    daemon_threads = True

    def __init__(self, models: dict[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models, self.given = models, list[str]()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        for name, folder in self.server.models.items():
            files = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}
            if path.startswith((f"/api/models/{name}/revision/", f"/api/models/{name}/tree/")) or path == (
                f"/api/models/{name}"
            ):
                listed = [{"rfilename": one} for one in files]
                if "/tree/" in path:
                    self._json([self._entry(one, file) for one, file in files.items()])
                else:
                    self._json({"id": name, "modelId": name, "sha": COMMIT, "siblings": listed, "private": False,
                                "tags": [], "downloads": 0})  # fmt: skip
                return
            if path.startswith(f"/{name}/resolve/"):
                wanted = path.removeprefix(f"/{name}/resolve/").partition("/")[2]
                if wanted in files:
                    self._file(wanted, files[wanted])
                    return
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_HEAD(self) -> None:
        self.do_GET()

    def _entry(self, name: str, file: Path) -> dict[str, object]:
        return {"type": "file", "path": name, "size": file.stat().st_size, "oid": _etag(file)}

    def _json(self, value: object) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def _file(self, name: str, file: Path) -> None:
        content = file.read_bytes()
        self.send_response(200)
        self.send_header("ETag", f'"{_etag(file)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.server.given.append(name)
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing to stderr."""


def _etag(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@contextmanager
def hub(models: dict[str, Path]) -> Iterator[Hub]:
    """A hub that runs meanwhile."""
    with Hub(models) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
