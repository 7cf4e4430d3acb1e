"""A Kubeflow Pipelines API server, through kfp's own client; the credentials come from the environment, never from us.

``KFP_EXISTING_TOKEN``, which the ``kfp`` command reads too, holds a bearer token. Without it,
``KF_PIPELINES_SA_TOKEN_PATH`` names a file that holds one, as in a pod. kfp itself reads ``KF_PIPELINES_IAP_*`` (Google
IAP) and ``~/.config/kfp/context.json`` (cookies, headers, the namespace). ``SSL_CERT_FILE`` names the certificates of
authorities to trust instead of certifi's.
"""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import kfp
import kfp_server_api
import urllib3
from kfp.client import KF_PIPELINES_SA_TOKEN_ENV, ServiceAccountTokenVolumeCredentials

from spare_core.errors import ClusterRefused, ClusterUnavailable, SettingsError

TOKEN = "KFP_EXISTING_TOKEN"
_UI = "KF_PIPELINES_UI_ENDPOINT"
_CONNECT, _HEALTH, _WORK = 3.0, 4.0, 60.0
"""Seconds to connect, to say hello, and to answer a request that may have to compile a pipeline."""
_BUSY = {429, 500, 502, 503, 504}
SUCCEEDED = "SUCCEEDED"
ENDED = {SUCCEEDED, "SKIPPED", "FAILED", "CANCELED"}
"""The states of a run that goes on no more."""


class Submission(NamedTuple):
    """What is to be run, and where: a pipeline with its parameters, under a name in an experiment."""

    name: str
    experiment_id: str
    specification: dict[str, Any]
    parameters: dict[str, Any]
    pipeline_root: str | None
    service_account: str | None


class Cluster:
    """The API server at ``endpoint``, which is asked at once whether it is there: an answer, or an error, in < 10 s.

    ``namespace`` is needed by clusters for several users, and refused by all others.

    Every method may raise ClusterUnavailable and ClusterRefused.

    Raises:
        SettingsError: if the endpoint is no URL that can be used, or the token is none.
    """

    def __init__(self, endpoint: str, namespace: str | None = None) -> None:
        self.endpoint = _checked_url("the endpoint", endpoint)
        self._ui = _checked_url(_UI, os.environ.get(_UI) or endpoint)
        self._token, credentials = _credentials()
        with self._asking(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # kfp greets everyone with one
            self._client = _Client(host=self.endpoint, ssl_ca_cert=os.environ.get("SSL_CERT_FILE"), **credentials)
            health = self._client.get_kfp_healthz()
        self.namespace = namespace or self._client.get_user_namespace()
        if health.multi_user and not self.namespace:
            raise ClusterRefused(f"{self.endpoint} serves several users; name yours with --namespace")

    def experiment(self, name: str) -> str:
        """The id of the experiment of that name, which is created if there is none."""
        api = self._client.experiments
        with self._asking():
            found = api.experiment_service_list_experiments(
                filter=_named(name), namespace=self.namespace, **_patience()
            ).experiments
            if found:
                return self._id(found[0].experiment_id)
            body = self._client.api_models.V2beta1Experiment(display_name=name, namespace=self.namespace)
            return self._id(api.experiment_service_create_experiment(experiment=body, **_patience()).experiment_id)

    def create_run(self, what: Submission) -> str:
        """Start a run; its id."""
        body = self._client.api_models.V2beta1Run(**self._fields(what))
        lost = f"; it may have started all the same: look for a run named {what.name!r} before you submit again"
        with self._asking(lost):
            return self._id(self._client.runs.run_service_create_run(run=body, **_patience()).run_id)

    def schedule(self, what: Submission, cron: str) -> str:
        """Start a run at each time that ``cron`` says, one at a time, none for times that were missed; its id.

        Raises:
            SettingsError: if the experiment has a schedule of that name, which would go on beside it.
        """
        models, service = self._client.api_models, self._client.recurring_runs
        body = models.V2beta1RecurringRun(
            **self._fields(what),
            namespace=self.namespace,
            max_concurrency="1",
            no_catchup=True,
            mode=models.RecurringRunMode.ENABLE,
            trigger=models.V2beta1Trigger(cron_schedule=models.V2beta1CronSchedule(cron=cron)),
        )
        name = what.name
        lost = f"; it may have been made all the same: look for a recurring run named {name!r} before you try again"
        with self._asking(lost):
            found = service.recurring_run_service_list_recurring_runs(
                experiment_id=what.experiment_id, filter=_named(name), **_patience()
            ).recurring_runs
            if found:
                raise SettingsError([
                    f"there is a recurring run named {name!r} already ({found[0].recurring_run_id}); delete it with "
                    f"`kfp recurring-run delete`, or give this one another --name"
                ])  # fmt: skip
            made = service.recurring_run_service_create_recurring_run(recurring_run=body, **_patience())
            return self._id(made.recurring_run_id)

    def _fields(self, what: Submission) -> dict[str, Any]:
        """What a run and a recurring run have in common."""
        runtime = self._client.api_models.V2beta1RuntimeConfig(
            parameters=what.parameters, pipeline_root=what.pipeline_root
        )
        return {
            "display_name": what.name, "experiment_id": what.experiment_id, "pipeline_spec": what.specification,
            "runtime_config": runtime, "service_account": what.service_account,
        }  # fmt: skip

    def state(self, run_id: str) -> tuple[str, str]:
        """A run's state, as KFP calls it, and what went wrong, if anything did."""
        with self._asking():
            run = self._client.runs.run_service_get_run(run_id=run_id, **_patience())
        return run.state or "PENDING", self._cleaned(run.error.message or "") if run.error else ""

    def unfinished(self, experiment_id: str) -> tuple[str, str] | None:
        """Id and name of a run of an experiment that has not ended, of its latest hundred; None where all have."""
        with self._asking():
            found = self._client.runs.run_service_list_runs(
                experiment_id=experiment_id, page_size=100, sort_by="created_at desc", **_patience()
            ).runs
        for run in found or ():
            if (run.state or "PENDING") not in ENDED:
                return self._id(run.run_id), self._cleaned(run.display_name or "")
        return None

    def run_url(self, run_id: str) -> str:
        """Where a browser shows a run."""
        return f"{self._ui}/#/runs/details/{run_id}"

    def schedule_url(self, recurring_run_id: str) -> str:
        """Where a browser shows a recurring run."""
        return f"{self._ui}/#/recurringrun/details/{recurring_run_id}"

    def _id(self, found: str | None) -> str:
        if not found:
            raise self._stranger()
        return found

    def _stranger(self) -> ClusterRefused:
        return ClusterRefused(f"{self.endpoint} answers, but not as a KFP API server; check the address")

    @contextlib.contextmanager
    def _asking(self, lost: str = "") -> Iterator[None]:
        """Turn what kfp's client raises into our errors; ``lost`` is said where a request may have arrived."""
        try:
            yield
        except kfp_server_api.ApiException as error:
            raise self._refusal(error, lost) from None
        except UnicodeDecodeError:
            raise self._stranger() from None
        except urllib3.exceptions.HTTPError as error:
            reason = getattr(error, "reason", None) or error
            known = isinstance(reason, urllib3.exceptions.NewConnectionError | urllib3.exceptions.ConnectTimeoutError)
            trust = "; SSL_CERT_FILE names whom to trust" if isinstance(reason, urllib3.exceptions.SSLError) else ""
            why = self._cleaned(str(reason))
            raise ClusterUnavailable(f"cannot reach {self.endpoint}: {why}{trust}{'' if known else lost}") from None

    def _refusal(self, error: Any, lost: str) -> ClusterRefused | ClusterUnavailable:
        """What an answer that is no success means, and what to do."""
        status, said = error.status, _message(error.body)
        if not status:  # the client could not read the answer
            return self._stranger()
        what = self._cleaned(f"{self.endpoint} answers {status} {error.reason}{f': {said}' if said else ''}")
        if status in _BUSY:
            return ClusterUnavailable(f"{what}; try again later{lost}")
        if 300 <= status < 400:
            return ClusterRefused(f"{what}; it sends us elsewhere, perhaps to a page to log in: set {TOKEN}")
        advice = {
            401: f"set {TOKEN} to a token that is valid now",
            403: f"ask for the right to create runs there, or set {TOKEN} to the token of someone who has it",
            404: "check the address, which is that of the API server, and the namespace",
        }
        return ClusterRefused(f"{what}; {advice[status]}" if status in advice else what)

    def _cleaned(self, text: str) -> str:
        """A stranger's words on one line of bearable length; our token, should they repeat it, is left out."""
        hidden = text.replace(self._token, "***") if self._token else text
        line = " ".join("".join(c if c.isprintable() else " " for c in hidden).split())
        return line if len(line) <= 600 else f"{line[:600]}…"


class _Client(kfp.Client):
    """kfp's client, but it asks once and soon gives up; as it comes, it tries five times, five seconds apart."""

    def _load_config(self, *args: Any, **kwargs: Any) -> Any:
        config = super()._load_config(*args, **kwargs)
        # Nor are redirects followed: the token is for this address only.
        config.retries = urllib3.Retry(0, raise_on_redirect=False)
        return config

    def get_kfp_healthz(self, sleep_duration: int = 0) -> Any:
        """Whether the server is there; raises what it raises."""
        # Undecoded: the client would take a page of HTML for an answer without fields.
        answer = self.healthzs.healthz_service_get_healthz(_request_timeout=(_CONNECT, _HEALTH), _preload_content=False)
        try:
            fields = json.loads(answer.data)
        except json.JSONDecodeError:
            fields = None
        if not isinstance(fields, dict):
            raise kfp_server_api.ApiException(status=0, reason="no JSON object")
        return self.api_models.V2beta1GetHealthzResponse(multi_user=fields.get("multi_user"))


def _named(name: str) -> str:
    """The filter of a listing that asks for what has that name."""
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]})


def _patience() -> dict[str, tuple[float, float]]:
    return {"_request_timeout": (_CONNECT, _WORK)}


def _checked_url(name: str, url: str) -> str:
    """``url`` without a slash at its end, if it is one that can be used and shown.

    Raises:
        SettingsError: without the URL where it holds what is not to be shown.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if any(mark in url for mark in "@?#"):
        secret = f"set {TOKEN} instead of writing a password into the address"
        raise SettingsError([f"{name} must be a URL without user, password, ? and #; {secret}"])
    if not usable or not url.isprintable() or " " in url:
        raise SettingsError([f"{name} is {url!r}; it must be a URL, as in https://kubeflow.example.org/pipeline"])
    return url.rstrip("/")


def _credentials() -> tuple[str, dict[str, Any]]:
    """The token, if there is one, and what kfp's client takes; a bad token would be shown in the HTTP client's error.

    Raises:
        SettingsError: without the token.
    """
    token, path = os.environ.get(TOKEN, "").strip(), os.environ.get(KF_PIPELINES_SA_TOKEN_ENV)
    if token:
        return _checked_token(TOKEN, token), {"existing_token": token}
    if not path:
        return "", {}
    try:
        written = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not text"
        raise SettingsError(
            [f"cannot read the token in {path}, which {KF_PIPELINES_SA_TOKEN_ENV} names: {why}"]
        ) from None
    return _checked_token(path, written), {"credentials": ServiceAccountTokenVolumeCredentials(path)}


def _checked_token(name: str, token: str) -> str:
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise SettingsError([f"{name} must hold a token: printable ASCII without spaces"])
    return token


def _message(body: str | None) -> str:
    """What the server says about an error: KFP's own words, or those of whatever stands before it."""
    try:
        fields = json.loads(body or "")
    except json.JSONDecodeError:
        return "" if (body or "").lstrip().startswith("<") else body or ""
    return str(fields.get("message") or fields.get("error") or "") if isinstance(fields, dict) else str(fields)
