"""The API of one Kubeflow Pipelines server, as far as it is needed here; every failure is one sentence that ends with the remedy."""

import contextlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kfp_server_api as kfp
import urllib3

from unimed.errors import InputError

OLDEST = (2, 17)
TIMEOUT_SECONDS = (10, 120)
"""To connect, and between two pieces of an answer."""

MOST_SAID = 300
"""Letters of a server's own words that are passed on."""

LOOK = "look at the log of its deployment ml-pipeline"


class RefusalError(InputError):
    """A request that was not granted: the HTTP status, 0 without an answer, and whether the same may be granted in a minute."""

    def __init__(self, sentence: str, status: int):
        super().__init__(sentence)
        self.status = status
        self.is_passing = status in (0, 408, 429) or status >= 500


class Server:
    """A Kubeflow Pipelines server at `host`, the address of its API or of its UI, with or without a path.

    Methods raise `RefusalError`; names that are not found are None.
    """

    def __init__(self, host: str):
        self.host = _checked(host)
        client = kfp.ApiClient(_configuration(self.host))
        self.health = kfp.HealthzServiceApi(client)
        self.pipelines = kfp.PipelineServiceApi(client)
        self.uploads = kfp.PipelineUploadServiceApi(client)
        self.experiments = kfp.ExperimentServiceApi(client)
        self.runs = kfp.RunServiceApi(client)

    def url(self, run_id: str) -> str:
        """The page of a run in the UI."""
        return f"{os.environ.get('KF_PIPELINES_UI_ENDPOINT', self.host).rstrip('/')}/#/runs/details/{run_id}"

    def check(self) -> bool:
        """Whether the server keeps pipelines by namespace; raises unless it is one that can run the pipeline."""
        answer = self._ask("to read its version", self.health.healthz_service_get_healthz, _preload_content=False)
        try:
            health = json.loads(answer.data)
        except ValueError:
            health = None
        if not isinstance(health, dict) or "multi_user" not in health:
            raise self._no_api(answer.status)
        # The UI passes the same on under another name. Builds without a release say `unknown`, and get the benefit of the doubt.
        tag = str(health.get("tag_name") or health.get("apiServerTagName"))
        if (version := re.match(r"v?(\d+)\.(\d+)", tag)) and tuple(map(int, version.groups())) < OLDEST:
            oldest = ".".join(map(str, OLDEST))
            raise InputError(f"{self.host}: expected Kubeflow Pipelines {oldest} or later, found {tag}; ask for an upgrade of the server")
        return bool(health["multi_user"])

    def pipeline_id(self, name: str, namespace: str | None) -> str | None:
        """The id of the pipeline of that name."""
        words = {"namespace": namespace} if namespace else {}
        try:
            return self._ask("to find the pipeline", self.pipelines.pipeline_service_get_pipeline_by_name, name, **words).pipeline_id
        except RefusalError as refused:
            if refused.status == 404:
                return None
            raise

    def make_pipeline(self, name: str, namespace: str | None) -> str:
        """The id of a new pipeline that has no version yet."""
        pipeline = kfp.V2beta1Pipeline(name=name, display_name=name, namespace=namespace)
        return self._ask("to make a pipeline", self.pipelines.pipeline_service_create_pipeline, pipeline).pipeline_id

    def version_id(self, pipeline_id: str, name: str) -> str | None:
        """The id of the version of that name."""
        listed = self._ask(
            "to find the version", self.pipelines.pipeline_service_list_pipeline_versions, pipeline_id, filter=_equals("name", name)
        )
        return next((version.pipeline_version_id for version in listed.pipeline_versions or []), None)

    def upload(self, pipeline_id: str, name: str, ir: Path, description: str) -> str:
        """The id of a new version with the pipeline in the file `ir`."""
        words = {"name": name, "pipelineid": pipeline_id, "description": description}
        return self._ask("to upload a version", self.uploads.upload_pipeline_version, str(ir), **words).pipeline_version_id

    def experiment_id(self, name: str, namespace: str | None) -> str | None:
        """The id of the experiment of that name."""
        words = {"namespace": namespace} if namespace else {}
        listed = self._ask(
            "to find the experiment", self.experiments.experiment_service_list_experiments, filter=_equals("display_name", name), **words
        )
        return next((experiment.experiment_id for experiment in listed.experiments or []), None)

    def make_experiment(self, name: str, namespace: str | None) -> str:
        """The id of a new experiment."""
        experiment = kfp.V2beta1Experiment(display_name=name, namespace=namespace)
        return self._ask("to make an experiment", self.experiments.experiment_service_create_experiment, experiment).experiment_id

    def start(self, title: str, pipeline_id: str, version_id: str, experiment_id: str, account: str) -> str:
        """The id of a new run; what it may take from the cache is what the pipeline says."""
        version = kfp.V2beta1PipelineVersionReference(pipeline_id=pipeline_id, pipeline_version_id=version_id)
        run = kfp.V2beta1Run(
            display_name=title, experiment_id=experiment_id, pipeline_version_reference=version, service_account=account or None
        )
        return self._ask("to start a run", self.runs.run_service_create_run, run).run_id

    def run(self, run_id: str) -> kfp.V2beta1Run:
        """A run as it stands."""
        run = self._ask("to read the run", self.runs.run_service_get_run, run_id)
        if not run.run_id:
            raise self._no_api(0)  # such as the page for logging in that a proxy shows when a token has run out
        return run

    def spec(self, run: kfp.V2beta1Run) -> dict[str, Any]:
        """The pipeline of a run as parsed IR, without its part for Kubernetes."""
        source, reference = run, run.pipeline_version_reference
        if reference is not None:
            ids = (reference.pipeline_id, reference.pipeline_version_id)
            source = self._ask("to read the pipeline of the run", self.pipelines.pipeline_service_get_pipeline_version, *ids)
        if source.pipeline_spec is None:
            raise InputError(f"run {run.run_id}: expected a pipeline with it, found none; its version was deleted, so submit again")
        return source.pipeline_spec.get("pipeline_spec", source.pipeline_spec)

    def _ask(self, wish: str, call: Callable[..., Any], *arguments: Any, **words: Any) -> Any:
        try:
            return call(*arguments, _request_timeout=TIMEOUT_SECONDS, **words)
        except kfp.ApiException as error:
            # The cause is left out: its text holds the headers.
            raise self._refusal(wish, int(error.status or 0), error.body or b"", str(error.reason)) from None
        except urllib3.exceptions.HTTPError as error:
            raise self._silence(error) from None

    def _refusal(self, wish: str, status: int, body: bytes | str, reason: str) -> RefusalError:
        """The sentence for an answer that is a refusal."""
        text = body.decode(errors="replace") if isinstance(body, bytes) else body
        said = _said(text)
        words = f"{status}: {said or reason}"
        if "exceeded quota" in text:
            need = f"expected room in the namespace's quota, found {words}; wait for other runs, or ask for more in its ResourceQuota"
        elif status == 401 or (status == 400 and re.search(r"authenticat", said, re.IGNORECASE)):
            found = "one that is refused" if _token() else "none"
            need = f"expected a valid token, found {found} ({words}); put a fresh one into the environment variable KFP_TOKEN"
        # Uploads are refused with 400 for whatever reason.
        elif status == 403 or (status == 400 and re.search(r"authoriz|denied|forbidden", said, re.IGNORECASE)):
            need = f"expected the right {wish}, found it missing ({words}); ask for the role kubeflow-pipelines-edit, or see --namespace"
        elif status in (400, 413):
            need = f"expected {wish}, found it rejected ({words}); compile with the versions of requirements.lock and try again"
        elif not said and status < 500:
            return self._no_api(status)
        else:
            need = f"expected {wish}, found {words}; " + ("check names and ids" if status == 404 else f"try again, then {LOOK}")
        return RefusalError(f"{self.host}: {need}", status)

    def _silence(self, error: urllib3.exceptions.HTTPError) -> RefusalError:
        """The sentence for an answer that did not come."""
        reason = re.sub(r"^\w+\(.*?\): ", "", str(getattr(error, "reason", None) or error))
        if "SSL" in reason:
            need = f"a certificate that can be trusted, found {reason}; name the authority's in SSL_CERT_FILE, or write http://"
        elif isinstance(error, urllib3.exceptions.MaxRetryError):
            need = f"a Kubeflow Pipelines API, found nothing that answers ({reason}); check --host and that the port is forwarded"
        else:
            need = f"an answer, found the connection broken ({reason}); look in the UI whether it was done before you try again"
        return RefusalError(f"{self.host}: expected {need}", 0)

    def _no_api(self, status: int) -> RefusalError:
        need = "the API of Kubeflow Pipelines, found something else, such as a page for logging in"
        return RefusalError(f"{self.host}: expected {need}; check --host, with its path, and the token in KFP_TOKEN", status)


def _checked(host: str) -> str:
    """The address without what a browser adds to it."""
    parts = urlsplit(host)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"--host {host}: expected an address such as http://localhost:8888, found another text; write it out with http://")
    if parts.password or parts.username:
        raise InputError(
            f"--host {parts.hostname}: expected an address without a password; put a token into the environment variable KFP_TOKEN"
        )
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def _configuration(host: str) -> kfp.Configuration:
    configuration = kfp.Configuration(host=host)
    configuration.ssl_ca_cert = os.environ.get("SSL_CERT_FILE")
    configuration.retries = urllib3.Retry(connect=0, read=0, redirect=3)  # who waits tries again; urllib3 would warn each time
    if _token():
        configuration.api_key_prefix = {"authorization": "Bearer"}
        configuration.refresh_api_key_hook = _renew
        _renew(configuration)
    return configuration


def _renew(configuration: kfp.Configuration) -> None:
    """Called before every request, because the token in a pod's file changes."""
    configuration.api_key = {"authorization": _token()}


def _token() -> str:
    if token := os.environ.get("KFP_TOKEN", "").strip():
        return token
    file = Path(os.environ.get("KF_PIPELINES_SA_TOKEN_PATH", ""))
    return file.read_text().strip() if file.is_file() else ""


def _equals(key: str, value: str) -> str:
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": key, "stringValue": value}]})


def _said(text: str) -> str:
    """What a server says of itself in a refusal; empty for anything that is not in the words of the API. A token in it is blotted out."""
    message = ""
    with contextlib.suppress(ValueError, AttributeError, TypeError, IndexError):
        answer = json.loads(text)
        details = [detail["error_message"] for detail in answer.get("details") or [] if "error_message" in detail]
        message = (details or [answer.get("error_message") or answer.get("message") or answer.get("error") or ""])[0]
    line = " ".join(str(message).split()).rstrip(".")
    if token := _token():
        line = line.replace(token, "***")
    return line if len(line) <= MOST_SAID else f"{line[:MOST_SAID]}…"
