"""A small KFP API server over HTTP: as much of v2beta1 as submitting a run takes, and as strict as the real one."""

from __future__ import annotations

import contextlib
import datetime
import json
import re
import ssl
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kfp_server_api
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

_API = "/apis/v2beta1/"
_CODES = {400: 3, 401: 16, 403: 7, 404: 5, 409: 6, 503: 14}
_TYPES = pipeline_spec_pb2.ParameterType
_TAKEN_BY: dict[int, tuple[str, tuple[type, ...]]] = {
    _TYPES.NUMBER_DOUBLE: ("double or integer", (int, float)),
    _TYPES.NUMBER_INTEGER: ("double or integer", (int, float)),
    _TYPES.STRING: ("string", (str,)),
    _TYPES.BOOLEAN: ("bool", (bool,)),
    _TYPES.LIST: ("list", (list,)),
    _TYPES.STRUCT: ("struct", (dict,)),
}


class RefusalError(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


@dataclass(frozen=True)
class Request:
    """What a client sent."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


@dataclass
class Fault:
    """Instead of the server's own answer, ``times`` times: a status and a body; or, where that is 0, a cut line."""

    path: str
    status: int = 0
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    times: int = 1000
    after: bool = False
    """The server does what it was asked to before the line is cut."""


class RunService:
    """Listens on ``url``; ``requests`` holds all that was asked, ``runs`` and ``experiments`` what was created."""

    def __init__(self, certificate: Path | None = None, token: str = "", multi_user: bool = False) -> None:
        self.token, self.multi_user = token, multi_user
        self.requests: list[Request] = []
        self.experiments: list[dict[str, Any]] = []
        self.runs: list[dict[str, Any]] = []
        self.schedules: list[dict[str, Any]] = []
        self.faults: list[Fault] = []
        self.states = ["PENDING"]
        """The states of a run, one for each time it is asked for; the last one stays."""
        self.error = ""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        scheme = "http" if certificate is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        """Be down from now on."""
        self._server.shutdown()
        self._server.server_close()

    def created(self) -> Any:
        """What the client asked to run, the last time."""
        return [request.body for request in self.requests if request.method == "POST" and "/runs" in request.path][-1]

    def answer(self, request: Request) -> dict[str, Any]:
        """What the API says, or RefusalError."""
        if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
            raise RefusalError(401, "Request header error: there is no user identity header")
        method, name = request.method, request.path.removeprefix(_API)
        if (method, name) == ("GET", "healthz"):
            return {"multi_user": self.multi_user}
        if (method, name) == ("GET", "experiments"):
            return self._found_experiments(request.query)
        if (method, name) == ("POST", "experiments"):
            return self._new_experiment(request.body)
        if (method, name) == ("GET", "runs"):
            return self._latest_runs(request.query)
        if (method, name) == ("POST", "runs"):
            return self._new_run(request.body)
        if (method, name) == ("GET", "recurringruns"):
            return self._found_schedules(request.query)
        if (method, name) == ("POST", "recurringruns"):
            return self._new_schedule(request.body)
        if method == "GET" and name.startswith("runs/"):
            return self._run(name.removeprefix("runs/"))
        raise RefusalError(404, "Not Found")

    def _found_experiments(self, query: dict[str, str]) -> dict[str, Any]:
        self._check_namespace(query.get("namespace", ""))
        (wanted,) = json.loads(query["filter"])["predicates"]
        if wanted.keys() != {"operation", "key", "stringValue"} or wanted["operation"] not in (1, "EQUALS"):
            raise RefusalError(400, f"Invalid filter: {wanted}")
        found = [one for one in self.experiments if one[wanted["key"]] == wanted["stringValue"]]
        return {"experiments": found, "total_size": len(found)} if found else {}

    def _new_experiment(self, body: Any) -> dict[str, Any]:
        _check_fields(body, kfp_server_api.V2beta1Experiment)
        self._check_namespace(body.get("namespace", ""))
        if not body.get("display_name"):
            raise RefusalError(400, "Experiment name is empty. Please specify a valid experiment name")
        self.experiments.append({**body, "experiment_id": str(uuid.uuid4()), "created_at": _now()})
        return self.experiments[-1]

    def _new_run(self, body: Any) -> dict[str, Any]:
        _check_fields(body, kfp_server_api.V2beta1Run)
        if not body.get("display_name"):
            raise RefusalError(400, "The run name is empty. Please specify a valid name")
        if body.get("experiment_id") not in [one["experiment_id"] for one in self.experiments]:
            raise RefusalError(404, f"Experiment {body.get('experiment_id')} not found")
        _check_fields(body["runtime_config"], kfp_server_api.V2beta1RuntimeConfig)
        _check_parameters(_pipeline(body["pipeline_spec"]), body["runtime_config"].get("parameters", {}))
        self.runs.append({**body, "run_id": str(uuid.uuid4()), "created_at": _now(), "storage_state": "AVAILABLE"})
        return {**self.runs[-1], "state": "PENDING"}

    def _latest_runs(self, query: dict[str, str]) -> dict[str, Any]:
        if query.get("sort_by") != "created_at desc" or not 1 <= int(query["page_size"]) <= 200:
            raise RefusalError(400, f"Invalid list options: {query}")
        found = [run for run in self.runs if run["experiment_id"] == query["experiment_id"]]
        return {"runs": [self._run(run["run_id"]) for run in reversed(found)]} if found else {}

    def _found_schedules(self, query: dict[str, str]) -> dict[str, Any]:
        (wanted,) = json.loads(query["filter"])["predicates"]
        found = [one for one in self.schedules if one["experiment_id"] == query["experiment_id"]]
        found = [one for one in found if one[wanted["key"]] == wanted["stringValue"]]
        return {"recurringRuns": found, "total_size": len(found)} if found else {}

    def _new_schedule(self, body: Any) -> dict[str, Any]:
        _check_fields(body, kfp_server_api.V2beta1RecurringRun)
        cron = body["trigger"]["cron_schedule"]["cron"]
        if len(cron.split()) != 6:
            raise RefusalError(400, f"Schedule cron is not supported: {cron}")
        if not isinstance(body["max_concurrency"], str):
            raise RefusalError(400, "invalid value for int64 type: max_concurrency")
        if not 1 <= int(body["max_concurrency"]) <= 10:
            raise RefusalError(400, "The max concurrency of the job is out of range")
        _check_parameters(_pipeline(body["pipeline_spec"]), body["runtime_config"].get("parameters", {}))
        self.schedules.append({**body, "recurring_run_id": str(uuid.uuid4()), "created_at": _now()})
        return self.schedules[-1]

    def _run(self, run_id: str) -> dict[str, Any]:
        found = [run for run in self.runs if run["run_id"] == run_id]
        if not found:
            raise RefusalError(404, f"Run {run_id} not found")
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        return {**found[0], "state": state, **({"error": {"code": 13, "message": self.error}} if self.error else {})}

    def _check_namespace(self, namespace: str) -> None:
        if self.multi_user and not namespace:
            raise RefusalError(400, "Invalid input error: Namespace is empty in multi-user mode")
        if namespace and not self.multi_user:
            raise RefusalError(
                400, "Invalid input error: In single-user mode, ListExperiments cannot filter by namespace"
            )


@contextlib.contextmanager
def run_service(**settings: Any) -> Iterator[RunService]:
    """A running server."""
    service = RunService(**settings)
    try:
        yield service
    finally:
        service.close()


def _handler(service: RunService) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._serve(b"null")

        def do_POST(self) -> None:
            self._serve(self.rfile.read(int(self.headers["Content-Length"])))

        def log_message(self, *arguments: object) -> None:
            """Nothing: pytest's output is for failures."""

        def _serve(self, content: bytes) -> None:
            parts = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Request(self.command, parts.path, query, headers, json.loads(content))
            service.requests.append(request)
            fault = next((one for one in service.faults if one.times and re.search(one.path, parts.path)), None)
            if fault is None:
                self._send(*_answered(service, request))
                return
            fault.times -= 1
            if fault.after:
                service.answer(request)
            if fault.status:
                self._send(fault.status, fault.body, fault.headers)
            self.close_connection = True

        def _send(self, status: int, body: str, headers: dict[str, str]) -> None:
            content = body.encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    return Handler


def _answered(service: RunService, request: Request) -> tuple[int, str, dict[str, str]]:
    try:
        # Python writes and reads NaN and Infinity as if they were JSON; the real server does not.
        json.dumps(request.body, allow_nan=False)
        return 200, json.dumps(service.answer(request)), {}
    except ValueError:
        return 400, '{"code": 3, "message": "proto: syntax error: invalid value NaN"}', {}
    except RefusalError as refused:
        fields = {"code": _CODES[refused.status], "message": str(refused), "details": []}
        return refused.status, json.dumps(fields), {}


def _pipeline(sent: Any) -> pipeline_spec_pb2.PipelineSpec:
    """The pipeline of a run's ``pipeline_spec``: one alone, or one with what it asks of the platform."""
    two = "pipeline_spec" in sent
    if two and sent.keys() != {"pipeline_spec", "platform_spec"}:
        raise RefusalError(400, f"unknown fields in pipeline_spec: {sorted(sent)}")
    try:
        pipeline = json_format.ParseDict(sent["pipeline_spec"] if two else sent, pipeline_spec_pb2.PipelineSpec())
        platform = json_format.ParseDict(sent["platform_spec"] if two else {}, pipeline_spec_pb2.PlatformSpec())
    except json_format.ParseError as error:
        raise RefusalError(400, f"invalid v2 pipeline spec: {error}") from None
    if pipeline.schema_version != "2.1.0" or (two and "kubernetes" not in platform.platforms):
        raise RefusalError(400, "invalid v2 pipeline spec")
    return pipeline


def _check_parameters(pipeline: pipeline_spec_pb2.PipelineSpec, given: dict[str, Any]) -> None:
    """As the API server does: by the kind of JSON value alone."""
    takes = pipeline.root.input_definitions.parameters
    for name, spec in takes.items():
        if name not in given:
            if not spec.is_optional and not spec.HasField("default_value"):
                raise RefusalError(
                    400, f"parameter {name} is not optional, yet has neither default value nor a given one"
                )
            continue
        kind, types = _TAKEN_BY[spec.parameter_type]
        if type(given[name]) not in types:
            raise RefusalError(400, f"input parameter {name} requires type {kind}, but the value is not of that type")
    if extra := given.keys() - takes.keys():
        raise RefusalError(400, f"parameter(s) provided are not required by pipeline: {', '.join(sorted(extra))}")


def _check_fields(body: Any, model: Any) -> None:
    if unknown := body.keys() - set(model.attribute_map.values()):
        raise RefusalError(400, f"unknown fields: {sorted(unknown)}")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat()
