"""Releases in MLflow's model registry: each once, whoever tries and however often. Unlike tracking, this fails when MLflow does."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unimed import NOTICE, job, mlflow_server, recorder
from unimed.data.streamed import load
from unimed.model import artifacts
from unimed.release.parts import REGISTERED, RELEASE
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
    uri = mlflow_server.address(settings)
    if (reason := mlflow_server.refusal(uri)) and not uri.startswith("http"):
        log.warning("the release is not registered: %s", reason)
        return {}
    about = {**mlflow_server.TAGS, **job.source(), **({"git_revision": revision} if revision else {})}
    with mlflow_server.reach(settings, "register the release") as client:
        versions = _Versions(client, settings.experiment, about)
        found = {
            name: versions.version(name, parts[part], artifacts.MANIFEST, recorder.sealed(parts[part])) for part, name in REGISTERED.items()
        }
        made_by = found[REGISTERED["reasoner"]].tags.get("recipe_key")
        numbers = {name: str(version.version) for name, version in found.items()}
        tags = numbers | _about(load(manifest)) | ({"recipe_key": made_by} if made_by else {})
        release = versions.version(RELEASE, manifest.parent, manifest.name, tags)
        client.set_registered_model_alias(RELEASE, ALIAS, str(release.version))
    log.info("%s version %s is %s", RELEASE, release.version, ALIAS)
    return {"model": RELEASE, "version": str(release.version), "alias": ALIAS, "parts": numbers}


def _about(release: Mapping[str, Any]) -> dict[str, str]:
    """What the registry shows of a release: the base model, the data and the evaluation by hash, and that a gate let it through."""
    return {
        "base_model_sha256": release["parts"]["foundation"]["manifest_sha256"],
        "inputs": json.dumps(release["data"], sort_keys=True),
        "evaluation": release["evaluation"]["dvc"],
        "gate": f"passed sha256:{release['gate']['sha256']}",
    }


@dataclass(frozen=True)
class _Versions:
    """Versions in MLflow's registry, with the experiment that new ones have their run in and the tags that all of them get."""

    client: "MlflowClient"
    experiment: str
    about: Mapping[str, str]

    def version(self, name: str, folder: Path, manifest: str, tags: Mapping[str, str]) -> "ModelVersion":
        """The version of a registered model with the folder's manifest; made from the folder, with these tags, when there is none."""
        digest, own = artifacts.sha256(folder / manifest), ""

        def make() -> "ModelVersion":
            nonlocal own
            with self._run(name) as (own, place):
                self.client.log_artifacts(own, str(folder), "model")
                about = {**self.about, **tags, recorder.SEALED: digest}
                return self.client.create_model_version(name, f"{place}/model", own, about, description=NOTICE)

        found = mlflow_server.version(self.client, name, recorder.SEALED, digest, make)
        if own and found.run_id != own:
            self.client.delete_run(own)
        return found

    @contextmanager
    def _run(self, name: str) -> Iterator[tuple[str, str]]:
        """A run that holds what is registered: its number and where its artifacts lie."""
        from mlflow.exceptions import MlflowException

        number = mlflow_server.experiment(self.client, self.experiment)
        run = self.client.create_run(number, tags={"stage": "release", **self.about}, run_name=name).info
        status = "FAILED"
        try:
            yield run.run_id, run.artifact_uri
            status = "FINISHED"
        finally:
            with suppress(MlflowException):
                self.client.set_terminated(run.run_id, status)
