"""MLflow, reached or refused in one sentence; what has a name there is made once, whoever else makes it at this moment."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from unimed import NOTICE, params
from unimed.errors import InputError
from unimed.job import in_pod
from unimed.settings import Tracking

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

TAGS = {"research_use_only": "true"}
"""Of everything in MLflow."""

CONNECT_SECONDS = 2.0
_FILE = "sqlite:///"


def configured() -> Tracking:
    """The section `tracking` of ./params.yaml; the defaults outside a project."""
    file = Path("params.yaml")
    return params.parse("tracking", Tracking, {"tracking": {}} | (params.load(file.read_text()) if file.is_file() else {}))


def address(settings: Tracking) -> str:
    """Where MLflow is: MLFLOW_TRACKING_URI, else the settings; a server gets one retry, so that nobody waits for a dead one."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    return os.environ.get("MLFLOW_TRACKING_URI") or settings.uri


def refusal(uri: str) -> str:
    """Why a tracking server takes no connection, asked without importing mlflow; empty when it does, or when the address is a file."""
    parts = urlsplit(uri)
    if parts.scheme == "sqlite" and in_pod():
        return f"{uri} would be a file of this pod and go with it; set MLFLOW_TRACKING_URI in the tracking Secret"
    if not parts.scheme.startswith("http") or not parts.hostname:
        return ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname, port), CONNECT_SECONDS).close()
    except OSError as error:
        return f"{parts.hostname}:{port} does not answer: {error}"
    return ""


def absence(settings: Tracking) -> str:
    """Why there is no registry to ask; empty when there is a server, or a database. None is made for a question."""
    uri = address(settings)
    if uri.startswith(_FILE) and not Path(uri.removeprefix(_FILE)).is_file():
        remedy = "change into the project's folder or set MLFLOW_TRACKING_URI to the server that has it"
        return f"{uri.removeprefix(_FILE)}: expected MLflow's database, found none; {remedy}"
    return "" if uri.startswith("http") else refusal(uri)


@contextmanager
def reach(settings: Tracking, doing: str) -> Iterator["MlflowClient"]:
    """A client of MLflow for the block. Raises InputError, saying that it was expected to do what `doing` says, when it fails."""
    uri = address(settings)
    if reason := refusal(uri):
        raise _failure(uri, doing, reason)
    from mlflow import MlflowClient

    try:
        yield MlflowClient(uri, uri)
    except failures() as error:
        raise _failure(uri, doing, told(error)) from error


def download(client: "MlflowClient", version: "ModelVersion", place: Path, file: str = "") -> Path:
    """What a version holds, or one file of it, in the folder `place`; gives where it lies. Fails as `failures` says."""
    from mlflow.artifacts import download_artifacts

    place.mkdir(parents=True, exist_ok=True)
    source = client.get_model_version_download_uri(version.name, str(version.version)) + (f"/{file}" if file else "")
    return Path(download_artifacts(artifact_uri=source, dst_path=str(place), tracking_uri=client.tracking_uri))


def failures() -> tuple[type[Exception], ...]:
    """What MLflow's client raises when a server, its database or its files fail."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, SQLAlchemyError, OSError


def told(error: Exception) -> str:
    """What a failure says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _failure(uri: str, doing: str, reason: str) -> InputError:
    """The one sentence; an address may hold a password, so that only its host is told."""
    place = urlsplit(uri).hostname or uri
    remedy = "start the server or mend MLFLOW_TRACKING_URI, MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, then try again"
    return InputError(f"MLflow at {place}: expected it to {doing}, found: {reason}; {remedy}")


def experiment(client: "MlflowClient", name: str) -> str:
    """The number of the experiment, made when there is none; beside a database in a file its artifacts lie in `mlartifacts`."""
    if known := client.get_experiment_by_name(name):
        return known.experiment_id
    place = Path("mlartifacts").resolve().as_uri() if client.tracking_uri.startswith("sqlite:") else None
    _once(lambda: client.create_experiment(name, place))
    return experiment(client, name)


def model(client: "MlflowClient", name: str, about: str = NOTICE) -> None:
    """Have a registered model of that name, described by `about`."""
    if not client.search_registered_models(f"name = '{name}'"):
        _once(lambda: client.create_registered_model(name, TAGS, about))


def tagged(client: "MlflowClient", name: str, tag: str, value: str) -> "list[ModelVersion]":
    """The versions of a registered model with that tag, the lowest number first."""
    found = client.search_model_versions(f"name = '{name}' and tags.{tag} = '{value}'")
    return sorted(found, key=lambda version: int(version.version))


def version(client: "MlflowClient", name: str, tag: str, value: str, make: "Callable[[], ModelVersion]") -> "ModelVersion":
    """The one version of a registered model with that tag, made by `make` when there is none.

    Of several that do this at once, all but the one with the lowest number take theirs back: numbers are given in order of commit.
    """
    if known := tagged(client, name, tag, value):
        return known[0]
    model(client, name)
    own = make()
    first = tagged(client, name, tag, value)[0]
    if first.version != own.version:
        client.delete_model_version(name, str(own.version))
    return first


def _once(create: Callable[[], object]) -> None:
    """Make something that another program may be making at this moment."""
    from mlflow.exceptions import MlflowException

    try:
        create()
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def latest_versions(settings: Tracking) -> dict[str, str]:
    """The newest version of each registered model, by name; empty when the tracking server is down."""
    uri = address(settings)
    if refusal(uri):
        return {}
    from mlflow import MlflowClient

    newest: dict[str, int] = {}
    for version in MlflowClient(uri, uri).search_model_versions():
        newest[version.name] = max(int(version.version), newest.get(version.name, 0))
    return {name: str(number) for name, number in sorted(newest.items())}
