"""Hold a cluster to what the pipeline needs: the namespace, Kubeflow Pipelines, the store, MLflow; each finding says how to mend it.

Nothing is changed: the one object that is written, to see whether the store takes it, is taken away again.
"""

import os
import re
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import typer
import urllib3

from pipelines import capacity, kfp_server, namespace, plan, resources, stages, trainjobs
from pipelines.namespace import Finding, Place
from unimed import params
from unimed.errors import InputError
from unimed.objects import Objects
from unimed.settings import Cluster

OLDEST_MLFLOW = (3, 16, 1)
"""Earlier ones came with a password that everybody knows."""

BROKEN = 1
WIDTH = 32
TIMEOUT_S = 10
MARKS = {True: "ok", False: "MEND", None: "-"}


def report(name: str, host: str) -> int:
    """Print what is found in namespace `name`, a line each: 0 when nothing needs mending, 1 otherwise.

    `host` is the address of Kubeflow Pipelines; the store is the DVC remote, tried with the AWS variables of whoever asks, and MLflow is
    the server that MLFLOW_TRACKING_URI names. Raises `InputError` for a cluster that cannot be reached.
    """
    file = Path("params.yaml")
    if not file.exists():
        raise InputError("params.yaml: expected the project in the working folder, found none; change into a clone of it")
    numbers = params.load(file.read_text())
    cluster = params.parse("cluster", Cluster, {"cluster": {}} | numbers)
    place = Place(trainjobs.Cluster().core.api_client, name, cluster, stages.read(Path("dvc.yaml").read_text()))
    findings = []
    for finding in examine(place, host, os.environ.get("MLFLOW_TRACKING_URI", "")):
        typer.echo(f"{MARKS[finding.ok]:5}{finding.name:{WIDTH}}{finding.found}")
        if finding.ok is not True and finding.remedy:
            typer.echo(f"{'':{5 + WIDTH}}{finding.remedy}")
        findings.append(finding)
    broken = sum(finding.ok is False for finding in findings)
    typer.echo(f"{len(findings)} things looked at, {broken} to mend")
    return BROKEN if broken else 0


def examine(place: Place, host: str, tracking: str) -> Iterator[Finding]:
    """What is found, one after the other; a check that fails is a finding. Raises `InputError` only where no cluster answers."""
    _reach(place)
    for name, check in _checks(place):
        yield _tried(name, partial(check, place))
    yield _tried("kubeflow pipelines", partial(pipelines, host))
    yield _tried("store", partial(store, Path()))
    yield from mlflow(tracking)


def _checks(place: Place) -> Iterator[tuple[str, Callable[[Place], Finding]]]:
    """What the Kubernetes API is asked about, by name."""
    yield "kubernetes", namespace.kubernetes
    yield "namespace", namespace.namespace
    for name in (namespace.RUNNER, namespace.TRAINER) if place.spread else (namespace.RUNNER,):
        yield f"service account {name}", partial(namespace.account, account_name=name)
    yield "rights of runs", namespace.rights
    yield "your rights", namespace.own_rights
    for name, keys in resources.secrets(place.cluster).items():
        yield f"secret {name}", partial(namespace.secret, secret_name=name, keys=keys, needed=name == place.cluster.store_secret)
    yield f"secret {namespace.MLFLOW}", namespace.mlflow_secret
    yield "network", namespace.addresses
    yield "quota", capacity.quota
    if any(resources.gpus(stage, place.cluster) for stage in place.stages):
        yield "gpus", capacity.gpus
    yield "trainer", namespace.trainer
    yield "runtime", namespace.runtime


def _reach(place: Place) -> None:
    """Raise `InputError` unless the Kubernetes API answers and knows who asks."""
    from kubernetes.client import ApiException

    try:
        place.ask("/version")
    except urllib3.exceptions.HTTPError as error:
        raise InputError(
            f"Kubernetes at {place.api.configuration.host}: expected an API server, found {trainjobs.sentence(error)}; "
            "check KUBECONFIG and `kubectl cluster-info`"
        ) from None
    except ApiException as error:
        if error.status == 401:
            raise trainjobs.refusal(error, place.name) from None


def _tried(name: str, check: Callable[[], Finding]) -> Finding:
    """What a check finds; a failure on the way is a finding, too."""
    from kubernetes.client import ApiException

    try:
        return check()
    except InputError as error:
        found, _, remedy = str(error).partition("; ")
        return Finding(name, False, found, remedy)
    except ApiException as error:
        if error.status == 403:
            return Finding(name, None, "not seen: this account may not look", "ask an administrator to run `unimed doctor`")
        return Finding(name, False, f"the Kubernetes API says {error.status}: {trainjobs.sentence(error)}", "run `unimed doctor` again")
    except urllib3.exceptions.HTTPError as error:
        return Finding(name, False, f"no answer: {trainjobs.sentence(error)}", "check the address and that the port is forwarded")


def pipelines(host: str) -> Finding:
    """Whether Kubeflow Pipelines answers at `host` and is new enough."""
    name = "kubeflow pipelines"
    if not host:
        return Finding(name, None, "not tried: no --host", "`kubectl port-forward --namespace kubeflow svc/ml-pipeline 8888`, then --host")
    many = kfp_server.Server(host).check()
    return Finding(name, True, f"answers at {host}, for {'several users' if many else 'one user'}")


def store(root: Path) -> Finding:
    """Whether the DVC remote of the project in `root` takes, gives and deletes an object."""
    url = plan.store(root)
    if not url:
        return Finding("store", None, "no DVC remote: artifacts travel whole", "`dvc remote add --default store s3://BUCKET/PREFIX`")
    objects, name, said = Objects(url), f"doctor/{uuid.uuid4().hex}", os.urandom(8)
    objects.write(name, said)
    same = objects.read(name) == said
    try:
        objects.delete(name)
    except InputError as error:
        found = f"{objects.url(name)} was written and cannot be deleted: {error}"
        return Finding("store", False, found, "grant s3:DeleteObject under the prefix")
    if not same:
        return Finding("store", False, f"{url} does not give back what was put", "look at proxies and caches before the bucket")
    return Finding("store", True, f"{url} takes, gives and deletes")


def mlflow(address: str) -> Iterator[Finding]:
    """Whether MLflow answers, refuses strangers, takes the caller's password, and is new enough."""
    if not address.startswith(("http://", "https://")):
        forward = f"`kubectl port-forward svc/{namespace.MLFLOW} 5000`, then MLFLOW_TRACKING_URI=http://localhost:5000"
        yield Finding("mlflow", None, "not tried: MLFLOW_TRACKING_URI names no server", forward)
        return
    yield _tried("mlflow", partial(_answers, address.rstrip("/")))
    yield _tried("mlflow's door", partial(_refuses, address.rstrip("/")))
    yield _tried("mlflow's version", partial(_version, address.rstrip("/")))


def _get(url: str, user: str = "") -> urllib3.BaseHTTPResponse:
    headers = urllib3.make_headers(basic_auth=user) if user else {}
    return urllib3.request("GET", url, headers=headers, timeout=TIMEOUT_S, retries=False, redirect=False)


def _answers(address: str) -> Finding:
    status = _get(f"{address}/health").status
    remedy = "" if status == 200 else f"`kubectl logs deployment/{namespace.MLFLOW}` says why"
    return Finding("mlflow", status == 200, f"{address} answers {status}", remedy)


def _refuses(address: str) -> Finding:
    """A stranger must be asked for a password."""
    status = _get(f"{address}/api/2.0/mlflow/experiments/search?max_results=1").status
    if status == 401:
        return Finding("mlflow's door", True, "asks for a password")
    if status == 403:
        return Finding("mlflow's door", False, f"refuses the name {address}", "add it to --allowed-hosts in manifests/base/mlflow.yaml")
    return Finding("mlflow's door", False, f"answers a stranger with {status}", "start it with --app-name=basic-auth, as manifests/ do")


def _version(address: str) -> Finding:
    name, user = "mlflow's version", os.environ.get("MLFLOW_TRACKING_USERNAME", "")
    if not user:
        return Finding(name, None, "not seen: no MLFLOW_TRACKING_USERNAME", "set it and MLFLOW_TRACKING_PASSWORD")
    answer = _get(f"{address}/version", f"{user}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}")
    text = answer.data.decode(errors="replace")[:WIDTH]
    if answer.status != 200:
        return Finding(name, False, f"{user} is refused with {answer.status}", "correct MLFLOW_TRACKING_USERNAME and _PASSWORD")
    version = tuple(int(number) for number in re.findall(r"\d+", text)[:3])
    remedy = "" if version >= OLDEST_MLFLOW else f"upgrade to {'.'.join(map(str, OLDEST_MLFLOW))} or later"
    return Finding(name, not remedy, text, remedy)
