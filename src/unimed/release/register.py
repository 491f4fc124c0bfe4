"""Releases in MLflow's model registry: each once, whoever tries and however often. Unlike tracking, this fails when MLflow does."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from unimed import recorder
from unimed.errors import InputError
from unimed.model import artifacts
from unimed.release.parts import NOTICE, REGISTERED, RELEASE
from unimed.settings import Tracking

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

ALIAS = "challenger"
"""Points at the newest release; that it becomes champion is a person's decision."""

log = logging.getLogger("release")


def register(manifest: Path, parts: Mapping[str, Path], revision: str, settings: Tracking) -> dict[str, Any]:
    """Make a release a version of `unimed-medvlm` and its parts versions of their own, and move the alias `challenger` to it.

    What is there already, by the hash of its manifest, is not made again. Returns names and versions; nothing in a pod without a tracking
    server, where a registry would go with the pod. Raises InputError when MLflow does not answer or refuses.
    """
    uri = recorder.address(settings)
    reason = recorder.refusal(uri)
    if reason and not uri.startswith("http"):
        log.warning("the release is not registered: %s", reason)
        return {}
    if reason:
        raise _failure(uri, reason)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    about = {**recorder.NOTICE, **({"git_revision": revision} if revision else {})}
    try:
        registry = _Registry(MlflowClient(uri, uri), settings.experiment, uri, about)
        found = {name: registry.version(name, parts[part], artifacts.MANIFEST, {}) for part, name in REGISTERED.items()}
        made_by = found[REGISTERED["reasoner"]].tags.get("recipe_key")
        versions = {name: str(version.version) for name, version in found.items()}
        tags = versions | ({"recipe_key": made_by} if made_by else {})
        release = registry.version(RELEASE, manifest.parent, manifest.name, tags)
        registry.client.set_registered_model_alias(RELEASE, ALIAS, str(release.version))
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise _failure(uri, str(error).strip().splitlines()[0]) from error
    log.info("%s version %s is %s", RELEASE, release.version, ALIAS)
    return {"model": RELEASE, "version": str(release.version), "alias": ALIAS, "parts": versions}


def _failure(uri: str, reason: str) -> InputError:
    """The one sentence; an address may hold a password, so that only its host is told."""
    place = urlsplit(uri).hostname or uri
    remedy = "start the server or mend MLFLOW_TRACKING_URI, MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, then release again"
    return InputError(f"MLflow at {place}: expected it to register the release, found: {reason}; {remedy}")


@dataclass(frozen=True)
class _Registry:
    """MLflow's registry, with the experiment that new versions have their run in and the tags that all of them get."""

    client: "MlflowClient"
    experiment: str
    uri: str
    about: Mapping[str, str]

    def version(self, name: str, folder: Path, manifest: str, tags: Mapping[str, str]) -> "ModelVersion":
        """The version of a registered model with the folder's manifest; made from the folder, with these tags, when there is none."""
        digest = artifacts.sha256(folder / manifest)
        if known := self._known(name, digest):
            return known[0]
        if not self.client.search_registered_models(f"name = '{name}'"):
            self._create(lambda: self.client.create_registered_model(name, recorder.NOTICE, NOTICE))
        with self._run(name) as (number, place):
            self.client.log_artifacts(number, str(folder), "model")
            about = {**self.about, **tags, recorder.SEALED: digest}
            own = self.client.create_model_version(name, f"{place}/model", number, about, description=NOTICE)
        # Of several that do this at once, all but the one with the lowest number take theirs back: numbers are given in order of commit.
        first = self._known(name, digest)[0]
        if first.version != own.version:
            self.client.delete_model_version(name, str(own.version))
            self.client.delete_run(number)
        return first

    def _known(self, name: str, digest: str) -> "list[ModelVersion]":
        found = self.client.search_model_versions(f"name = '{name}' and tags.{recorder.SEALED} = '{digest}'")
        return sorted(found, key=lambda version: int(version.version))

    @contextmanager
    def _run(self, name: str) -> Iterator[tuple[str, str]]:
        """A run that holds what is registered: its number and where its artifacts lie."""
        from mlflow.exceptions import MlflowException

        run = self.client.create_run(self._experiment(), tags={"stage": "release", **self.about}, run_name=name).info
        status = "FAILED"
        try:
            yield run.run_id, run.artifact_uri
            status = "FINISHED"
        finally:
            with suppress(MlflowException):
                self.client.set_terminated(run.run_id, status)

    def _experiment(self) -> str:
        if known := self.client.get_experiment_by_name(self.experiment):
            return known.experiment_id
        place = Path("mlartifacts").resolve().as_uri() if self.uri.startswith("sqlite:") else None
        self._create(lambda: self.client.create_experiment(self.experiment, place))
        return self._experiment()

    def _create(self, create: Any) -> None:
        """Make something that another program may be making at this moment."""
        from mlflow.exceptions import MlflowException

        try:
            create()
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
