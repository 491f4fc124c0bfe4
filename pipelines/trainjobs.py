"""The TrainJobs of a namespace and their pods, over a Kubernetes API that may fail for minutes; refusals become sentences."""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from unimed.errors import InputError

GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
NODE = "node"
"""What a runtime calls the job that trains, and the container in it."""

OF_JOB = "jobset.sigs.k8s.io/jobset-name"
"""The label that JobSet puts on every pod of it."""

PAUSES_S = (1, 2, 4, 8, 16, 30, 60, 60, 60, 60)
"""Pauses between tries while the API fails, about five minutes; any answer starts them anew."""

TIMEOUT_S = (10, 60)
"""To connect, and to wait for the next byte; the second is longer than a watch that hears nothing."""

LOOK_AGAIN_S = 30
"""How long to watch before looking at the pods again: a TrainJob does not change when its pods cannot be scheduled."""

LOG_LINES = 30
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")

log = logging.getLogger("launch")


class Cluster:
    """The Kubernetes API in one namespace; failures that pass by themselves are waited out, others are exceptions of the client."""

    def __init__(self) -> None:
        from kubernetes import client, watch

        configuration = client.Configuration()
        self.namespace = _sign_in(configuration)
        configuration.retries = False  # tried again in `ask`, with pauses
        api = client.ApiClient(configuration)
        self.core = client.CoreV1Api(api)
        self._jobs = client.CustomObjectsApi(api)
        self._watch = watch.Watch()
        self._kind = (GROUP, VERSION, self.namespace, PLURAL)

    def ask(self, request: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """What the API answers to a request of the client."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        for pause in PAUSES_S:
            try:
                return request(*arguments, _request_timeout=TIMEOUT_S, **options)
            except (ApiException, HTTPError) as error:
                if not passing(error):
                    raise
                _rest(error, pause)
        return request(*arguments, _request_timeout=TIMEOUT_S, **options)

    def create(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """The TrainJob as the cluster keeps it."""
        return self.ask(self._jobs.create_namespaced_custom_object, *self._kind, manifest)

    def find(self, name: str) -> tuple[dict[str, Any] | None, str]:
        """The TrainJob of that name, if there is one, and the version to watch on from."""
        listed = self.ask(self._jobs.list_namespaced_custom_object, *self._kind, field_selector=f"metadata.name={name}")
        return next(iter(listed["items"]), None), listed["metadata"]["resourceVersion"]

    def delete(self, job: dict[str, Any]) -> None:
        """Begin to delete a TrainJob with all its pods; one that is gone, or a new one of its name, is left alone."""
        from kubernetes import client

        same = client.V1Preconditions(uid=job["metadata"]["uid"])
        options = client.V1DeleteOptions(propagation_policy="Foreground", preconditions=same)
        try:
            self.ask(self._jobs.delete_namespaced_custom_object, *self._kind, job["metadata"]["name"], body=options)
        except client.ApiException as error:
            if error.status not in (404, 409):
                raise

    def follow(self, job: dict[str, Any]) -> Iterator[dict[str, Any] | None]:
        """A TrainJob when it changes and every `LOOK_AGAIN_S`; None when it is gone, even if another has its name by then."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        name, uid = job["metadata"]["name"], job["metadata"]["uid"]
        latest, version, pauses = None, None, iter(PAUSES_S)
        while True:
            if version is None:
                latest, version = self.find(name)
                yield _same(latest, uid)
            try:
                for event in self._events(name, version):
                    pauses = iter(PAUSES_S)
                    version = event["object"]["metadata"]["resourceVersion"]
                    if event["type"] != "BOOKMARK":
                        latest = event["object"] if event["type"] != "DELETED" else None
                        yield _same(latest, uid)
                pauses = iter(PAUSES_S)
            except (ApiException, HTTPError) as error:
                if getattr(error, "status", None) == 410:
                    version = None  # too old to watch on from
                elif not passing(error):
                    raise
                if (pause := next(pauses, None)) is None:
                    raise
                _rest(error, pause)
                continue
            yield _same(latest, uid)

    def _events(self, name: str, version: str) -> Iterator[Any]:
        chosen = {"field_selector": f"metadata.name={name}", "resource_version": version, "timeout_seconds": LOOK_AGAIN_S}
        listing = self._jobs.list_namespaced_custom_object
        return self._watch.stream(listing, *self._kind, allow_watch_bookmarks=True, _request_timeout=TIMEOUT_S, **chosen)

    def pods(self, name: str) -> list[Any]:
        """The pods of a TrainJob."""
        return self.ask(self.core.list_namespaced_pod, self.namespace, label_selector=f"{OF_JOB}={name}").items

    def complaint(self, job: dict[str, Any]) -> str:
        """The last warning about a TrainJob or what it is made of, such as a quota that its pods exceed; empty without one."""
        name, made = job["metadata"]["name"], datetime.fromisoformat(job["metadata"]["creationTimestamp"])
        events = self.ask(self.core.list_namespaced_event, self.namespace, field_selector="type=Warning").items
        own = [event for event in events if event.involved_object.name.startswith(name) and _when(event) >= made]
        return max(own, key=_when).message if own else ""

    def tail(self, pod: str) -> str:
        """The last lines that a pod wrote, or why there are none."""
        from kubernetes.client import ApiException

        read = self.core.read_namespaced_pod_log
        try:
            answer = self.ask(read, pod, self.namespace, container=NODE, tail_lines=LOG_LINES, _preload_content=False)
        except ApiException as error:
            return f"(its log cannot be read: {sentence(error)})"
        return answer.data.decode(errors="replace").rstrip()


def _sign_in(configuration: Any) -> str:
    """Take on the pod's own account or, outside a cluster, the current context of the kubeconfig; gives the namespace."""
    from kubernetes import config

    try:
        config.load_incluster_config(configuration)
        return ACCOUNT.read_text().strip()
    except config.ConfigException:
        pass
    file = os.environ.get("KUBECONFIG")
    try:
        config.load_kube_config(file, client_configuration=configuration)
        return config.list_kube_config_contexts(file)[1]["context"].get("namespace", "default")
    except config.ConfigException as error:
        raise InputError(f"Kubernetes: expected a service account or a kubeconfig in KUBECONFIG, found neither: {error}") from None


def _same(job: dict[str, Any] | None, uid: str) -> dict[str, Any] | None:
    return job if job and job["metadata"]["uid"] == uid else None


def passing(error: Exception) -> bool:
    """Whether a failure may pass by itself: no answer, a server's own error, or too many requests."""
    status = getattr(error, "status", None)
    return status is None or status == 429 or status >= 500


def sentence(error: Exception) -> str:
    """What the API said, or what kept it from answering."""
    try:
        return json.loads(getattr(error, "body", ""))["message"]
    except (ValueError, TypeError, KeyError):
        return " ".join(str(getattr(error, "reason", None) or error).split())


def _rest(error: Exception, pause: float) -> None:
    log.warning("the Kubernetes API fails (%s); trying again in %s s", sentence(error), pause)
    time.sleep(pause)


def _when(event: Any) -> datetime:
    return event.last_timestamp or event.event_time or event.metadata.creation_timestamp


def refusal(error: Exception, namespace: str) -> InputError:
    """What the API refused as a sentence that says how to mend it."""
    said, status = sentence(error), getattr(error, "status", None)
    where = f"Kubernetes, namespace {namespace}"
    if "exceeded quota" in said:
        return InputError(f"{where}: expected room for a TrainJob, found {said}; delete finished ones or raise that ResourceQuota")
    if "must be created before the TrainJob" in said:
        return InputError(f"{where}: expected the ClusterTrainingRuntime of cluster.runtime, found none ({said}); apply manifests/")
    if status == 401:
        return InputError(f"{where}: expected valid credentials, found them refused ({said}); renew the token or kubeconfig")
    if status == 403 and "denied the request" not in said:
        return InputError(f"{where}: expected permission, found: {said}; add that verb to the Role of the account, as manifests/ do")
    if status == 404 and "namespaces" in said:
        return InputError(f"{where}: expected it to exist, found: {said}; create it, or submit to another one")
    if status == 404:
        return InputError(f"{where}: expected the resource trainjobs of {GROUP}, found none; install Kubeflow Trainer 2.3 or later")
    return InputError(f"{where}: expected a TrainJob to be accepted, found it refused: {said}; compare it with the runtime in manifests/")
