"""The one way to MLflow: where it is, whether it answers, and what its errors mean here.

``MLFLOW_TRACKING_URI`` says where: a server, or an sqlite file with a folder of artifacts beside it. Credentials come
from MLflow's own variables and are never repeated in a message.
MLflow retries what fails for a moment by itself (``MLFLOW_HTTP_REQUEST_MAX_RETRIES``).
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from spare_core.errors import RegistryError, RegistryInputError, RegistryUnavailable
from spare_core.files.atomic import replacing

if TYPE_CHECKING:
    from mlflow import MlflowClient

SQLITE: Final = "sqlite:////"
_CHECK_SECONDS: Final = 4.0
"""Limit of each of connecting and answering when the server is only asked whether it is there."""
_GIVE_UP_SECONDS: Final = 9.0
_SECRETS: Final = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
                   "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")  # fmt: skip
"""Variables whose values are cut out of every message, whoever wrote it."""
_USERINFO: Final = re.compile(r"(?<=://)[^/@\s]*@")
_DENIED: Final = (401, 403)


def tracking_uri() -> str:
    """The address of MLflow: of a server, or ``sqlite:///`` and the absolute path of a file.

    Raises:
        RegistryInputError: if none is set, or it is neither: MLflow would silently write to a local folder instead.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if not uri:
        raise RegistryInputError(
            "MLFLOW_TRACKING_URI is not set; set it to your MLflow server, e.g. http://host:5000, or to the sqlite: "
            "address that `spare run` prints"
        )
    if uri.startswith(SQLITE):
        return uri
    if not uri.startswith(("http://", "https://")):
        raise RegistryInputError(
            f"MLFLOW_TRACKING_URI is {scrubbed(uri)!r}; it must be the http:// or https:// address of an MLflow "
            f"server, or {SQLITE}path/of/a/file.db"
        )
    return uri.rstrip("/")


def embedded_uri(folder: Path) -> str:
    """The address of an MLflow without a server, all of it in ``folder``, which is made.

    Raises:
        RegistryInputError: for a path that cannot be part of such an address.
    """
    path = folder.absolute()
    if any(mark in str(path) for mark in "?#%"):
        raise RegistryInputError(f"MLflow's sqlite cannot lie in {path}: '?', '#' and '%' mean something else in a URI")
    path.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{path / 'mlflow.db'}"


def artifact_root() -> str | None:
    """Where a new experiment keeps its artifacts; None: where its server says."""
    uri = tracking_uri()
    return Path(uri.removeprefix("sqlite:///")).with_name("artifacts").as_uri() if uri.startswith(SQLITE) else None


def connect() -> MlflowClient:
    """A client of the server, of which nothing is asked yet; an sqlite file that is not there is made."""
    from mlflow import MlflowClient

    uri = tracking_uri()
    if uri.startswith(SQLITE):
        _make_database(Path(uri.removeprefix("sqlite:///")))
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _make_database(path: Path) -> None:
    """All of MLflow's tables, or no file.

    MLflow makes them in a hundred migrations, which take half a second; a file in which that was cut short can never be
    opened again.
    """
    from mlflow import MlflowClient

    if path.exists():
        return
    with replacing(path, once=True) as temporary:  # another process may be faster, and write to its own at once
        MlflowClient(f"sqlite:///{temporary}").search_experiments(max_results=1)


def check_server() -> None:
    """Ask the server for one experiment, without retries.

    Raises:
        RegistryUnavailable: if it does not answer within ten seconds.
        RegistryError: if it refuses the credentials, or answers something else than MLflow does.
    """
    uri = tracking_uri()
    if uri.startswith(SQLITE):
        with asking("answer"):
            connect().search_experiments(max_results=1)
        return
    outcome: list[BaseException | None] = []
    # A thread, because looking a host's name up knows no time limit.
    thread = threading.Thread(target=lambda: outcome.append(_probe(uri)), daemon=True)
    thread.start()
    thread.join(_GIVE_UP_SECONDS)
    if not outcome:
        raise RegistryUnavailable(_unavailable("answer", f"no answer within {_GIVE_UP_SECONDS:.0f} s"))
    if outcome[0] is not None:
        raise outcome[0]


def _probe(uri: str) -> BaseException | None:
    """The error of one small request, or None."""
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request, verify_rest_response

    endpoint = "/api/2.0/mlflow/experiments/search"
    try:
        with asking("answer"):
            response = http_request(
                get_default_host_creds(uri), endpoint, "POST", json={"max_results": 1}, timeout=_CHECK_SECONDS,
                max_retries=0, raise_on_status=False,
            )  # fmt: skip
            verify_rest_response(response, endpoint)
    except Exception as error:
        return error
    return None


@contextmanager
def asking(what: str) -> Iterator[None]:
    """Turn whatever MLflow raises while it is asked to do ``what`` into an error of ours, without any secret in it.

    Raises:
        RegistryUnavailable: if the server cannot be reached or stays busy after MLflow's own retries.
        RegistryInputError: if what was asked for does not exist.
        RegistryError: for any other refusal.
    """
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException  # type: ignore[import-untyped]

    try:
        yield
    except MlflowException as error:
        raise _translated(what, str(error), error.error_code, error.get_http_status_code()) from None
    except RequestException as error:  # files go past MLflow's own error handling
        status = 500 if error.response is None else error.response.status_code
        raise _translated(what, str(error), "", status) from None


def overwrite(what: str, write: Callable[[], object]) -> None:
    """Set an alias or a tag, also while somebody else sets the same one.

    MLflow looks whether it is there, then inserts, and answers the second of two with the database's broken constraint.
    Tried again, it finds it and replaces it.
    """
    for last in (False, False, True):
        try:
            with asking(what):
                write()
            return
        except RegistryError as error:
            if last or "unique constraint" not in str(error).lower():
                raise


def _translated(what: str, text: str, code: str, status: int) -> RegistryError:
    said = re.search(r"failed with error code (\d{3})", text)  # of an answer that is no JSON, only the message tells
    status = int(said[1]) if said else status
    if code == "RESOURCE_DOES_NOT_EXIST":
        return RegistryInputError(f"MLflow has nothing to {what}: {_line(text)}")
    if status in _DENIED:
        return RegistryError(
            f"MLflow at {_server()} refuses these credentials ({what}); check MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        )
    if status >= 500 or status == 429:
        return RegistryUnavailable(_unavailable(what, text))
    return RegistryError(f"MLflow at {_server()} did not {what}: {_line(text)}")


def _unavailable(what: str, text: str) -> str:
    return (
        f"MLflow at {_server()} cannot be reached, or is out of order ({what}: {_line(text)}); check "
        "MLFLOW_TRACKING_URI, the server and the network, then run the same again"
    )


def _server() -> str:
    return scrubbed(os.environ.get("MLFLOW_TRACKING_URI", ""))


def _line(text: str) -> str:
    """The cause in one line of at most 300 characters; requests names it last, after the classes that wrap it."""
    text = text.rpartition("(Caused by ")[2]
    first = next((line.strip() for line in scrubbed(text).splitlines() if line.strip()), "no reason given")
    return first if len(first) <= 300 else first[:299] + "…"


def scrubbed(text: str) -> str:
    """``text`` without user names and passwords in URLs, and without the values of the variables that hold secrets."""
    for name in _SECRETS:
        value = os.environ.get(name, "")
        if value:
            text = text.replace(value, "…")
    return _USERINFO.sub("", text)
