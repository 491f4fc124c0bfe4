"""`unimed doctor` against a cluster, Kubeflow Pipelines, MLflow and an S3 service on loopback sockets: what it finds and says."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from clinic import GPU, NAME, NETWORK, OWN, RUNTIME, SECRET_VALUE, Kubernetes, Mlflow, node, web
from kfp_api import KfpApi, serving, settle
from s3 import BUCKET, Fault, Service, moto_address, service  # noqa: F401  fixtures

from conftest import ROOT
from pipelines import doctor
from unimed.errors import InputError


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kubernetes]:
    """A cluster that lacks nothing, and a project whose stage grpo wants four GPUs on each of two machines."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    stages["stages"]["grpo"]["meta"]["nodes"] = 2
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump(stages))
    tell(tmp_path, most_gpus=4, most_memory="256Gi")
    held = Kubernetes()
    with web(held.answer) as address:
        context = {"clusters": [{"name": "c", "cluster": {"server": address}}], "users": [{"name": "u", "user": {"token": "t"}}]}
        context["contexts"] = [{"name": "x", "context": {"cluster": "c", "user": "u"}}]
        (tmp_path / "kubeconfig").write_text(yaml.safe_dump({**context, "current-context": "x", "kind": "Config", "apiVersion": "v1"}))
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        monkeypatch.chdir(tmp_path)
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
            monkeypatch.delenv(name, raising=False)
        yield held


@pytest.fixture
def kfp(monkeypatch: pytest.MonkeyPatch) -> Iterator[KfpApi]:
    settle(monkeypatch)
    with serving() as api:
        yield api


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mlflow]:
    server = Mlflow()
    with web(server.answer) as address:
        for name, value in {"URI": address, "USERNAME": "ann", "PASSWORD": SECRET_VALUE}.items():
            monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)
        yield server


@pytest.fixture
def remote(service: Service, tmp_path: Path) -> Service:  # noqa: F811
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text(f"[core]\n    remote = store\n['remote \"store\"']\n    url = {service.url}\n")
    return service


def tell(root: Path, **cluster: Any) -> None:
    (root / "params.yaml").write_text(yaml.safe_dump({"cluster": cluster}))


def look(capsys: pytest.CaptureFixture[str], host: str = "") -> tuple[int, str]:
    code = doctor.report(NAME, host)
    said = capsys.readouterr().out
    assert SECRET_VALUE not in said
    return code, said


def mends(said: str) -> list[str]:
    return [line.removeprefix("MEND ") for line in said.splitlines() if line.startswith("MEND")]


def test_a_cluster_that_lacks_nothing_is_well(capsys, cluster: Kubernetes, kfp: KfpApi, mlflow: Mlflow, remote: Service):
    code, said = look(capsys, kfp.url)
    assert (code, mends(said)) == (0, [])
    assert "\n-" not in said, said
    assert all(name in said for name in ("v1.34.2", "restricted", "unimed-torch is there", "3.17.2", "2 nodes have 4", kfp.url))
    assert "Contents" not in remote.client.list_objects_v2(Bucket=BUCKET), "the object that was written for the look is gone"
    assert {ask.split()[0] for ask in cluster.asked if "accessreviews" not in ask} == {"GET"}


FAULTS: dict[str, tuple[Callable[[Kubernetes], object], str, str]] = {
    "old cluster": (lambda it: it.held["/version"].update(minor="30"), "v1.34.2", "upgrade the cluster to 1.31"),
    "no namespace": (lambda it: it.held.pop(f"/api/v1/namespaces/{NAME}"), "unimed is not there", "kubectl apply -k"),
    "open namespace": (
        lambda it: it.held[f"/api/v1/namespaces/{NAME}"]["metadata"].clear(),
        "enforces nothing",
        "kubectl label namespace unimed",
    ),
    "no account": (lambda it: it.held.pop(f"{OWN}/serviceaccounts/unimed-runner"), "not there", "kubectl apply -k"),
    "no trainer account": (lambda it: it.held.pop(f"{OWN}/serviceaccounts/unimed-trainer"), "not there", "kubectl apply -k"),
    "weak account": (lambda it: it.refused.add("get pods/log"), "may not get pods/log", "it holds the Role"),
    "no store secret": (lambda it: it.held.pop(f"{OWN}/secrets/unimed-store"), "not there", "kubectl create secret generic unimed-store"),
    "empty key": (
        lambda it: it.held[f"{OWN}/secrets/unimed-store"]["data"].update(AWS_SECRET_ACCESS_KEY=""),
        "lacks AWS_SECRET_ACCESS_KEY",
        "kubectl create secret",
    ),
    "no password": (
        lambda it: it.held[f"{OWN}/secrets/unimed-mlflow"]["data"].pop("MLFLOW_AUTH_ADMIN_PASSWORD"),
        "lacks MLFLOW_AUTH_ADMIN_PASSWORD",
        "kubectl create secret generic unimed-mlflow",
    ),
    "address left": (lambda it: it.held[NETWORK]["items"][0].update(spec={"cidr": "192.0.2.1/32"}), "policies store", "name yours"),
    "full quota": (
        lambda it: it.held[f"{OWN}/resourcequotas"]["items"][0].update(status={"used": {f"requests.{GPU}": "4"}}),
        "4 of 8 in use, grpo asks for 8",
        "raise the ResourceQuota",
    ),
    "small quota": (
        lambda it: it.held[f"{OWN}/resourcequotas"]["items"][0]["spec"]["hard"].update({"limits.memory": "300Gi"}),
        "0 of 300Gi in use, grpo asks for 549755813888",
        "most_memory",
    ),
    "few gpus": (lambda it: it.held["/api/v1/nodes"].update(items=[node("a", "4"), node("b", "2")]), "1 nodes have 4", "device plugin"),
    "drained node": (
        lambda it: it.held["/api/v1/nodes"].update(items=[node("a", "4"), node("b", "4", unschedulable=True)]),
        "1 nodes have 4",
        "device plugin",
    ),
    "no jobset": (lambda it: it.held.pop("/apis/jobset.x-k8s.io"), "does not know jobset.x-k8s.io", "install Kubeflow Trainer 2.3"),
    "old trainer": (
        lambda it: it.held["/openapi/v3/apis/trainer.kubeflow.org/v1alpha1"].update(TrainJobSpec={"podTemplateOverrides": {}}),
        "know no runtimePatches",
        "install Kubeflow Trainer 2.3",
    ),
    "no runtime": (lambda it: it.held.pop(RUNTIME), "unimed-torch is not there", "kubectl apply -k"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_a_cluster_lacks_is_found_alone_and_with_its_remedy(capsys, cluster: Kubernetes, fault: str):
    spoil, found, remedy = FAULTS[fault]
    spoil(cluster)
    code, said = look(capsys)
    assert (code, len(mends(said))) == (1, 1), said
    assert found in mends(said)[0]
    assert remedy in said.splitlines()[[line.startswith("MEND") for line in said.splitlines()].index(True) + 1]


def test_what_this_account_may_not_see_is_not_called_broken(capsys, cluster: Kubernetes):
    cluster.forbidden |= {"/api/v1/nodes", f"{OWN}/secrets/unimed-store", f"{OWN}/resourcequotas"}
    code, said = look(capsys)
    assert (code, said.count("this account may not look")) == (0, 3), said


def test_what_no_stage_needs_may_be_missing(capsys, cluster: Kubernetes, tmp_path: Path):
    for path in [path for path in cluster.held if "trainer" in path or "jobset" in path or "nodes" in path or "mlflow" in path]:
        del cluster.held[path]
    tell(tmp_path, most_gpus=0)
    assert look(capsys)[0] == 0
    tell(tmp_path, most_gpus=4)
    assert len(mends(look(capsys)[1])) >= 3


def test_where_kubeflow_itself_lives_its_pods_are_not_judged(capsys, cluster: Kubernetes):
    cluster.held[f"/api/v1/namespaces/{NAME}"]["metadata"].clear()
    cluster.held[f"{OWN}/services/ml-pipeline"] = {"kind": "Service"}
    code, said = look(capsys)
    assert (code, "that of Kubeflow Pipelines itself" in said) == (0, True)


def test_a_store_that_cannot_be_used_is_found(capsys, cluster: Kubernetes, remote: Service):
    remote.faults.append(Fault("DELETE", "/doctor/", "answer", status=403, code="AccessDenied"))
    assert "cannot be deleted" in mends(look(capsys)[1])[0]
    remote.faults.append(Fault("PUT", "/doctor/", "answer", status=403, code="AccessDenied"))
    assert len(mends(look(capsys)[1])) == 1
    (Path(".dvc") / "config").write_text((Path(".dvc") / "config").read_text().replace("s3://unimed-store", "s3://nobodys"))
    assert "nobodys" in mends(look(capsys)[1])[0]


def test_an_old_or_absent_kubeflow_is_found(capsys, cluster: Kubernetes, kfp: KfpApi):
    kfp.health = {"tag_name": "2.15.0", "multi_user": False}
    [line] = mends(look(capsys, kfp.url)[1])
    assert "expected Kubeflow Pipelines 2.17 or later, found 2.15.0" in line
    assert "kubeflow pipelines" in mends(look(capsys, "http://127.0.0.1:9")[1])[0]


def test_an_mlflow_that_lets_anybody_in_is_found(capsys, cluster: Kubernetes, mlflow: Mlflow, monkeypatch: pytest.MonkeyPatch):
    mlflow.strangers = 200
    assert "answers a stranger with 200" in mends(look(capsys)[1])[0]
    mlflow.strangers = 403
    assert "--allowed-hosts" in look(capsys)[1]
    mlflow.strangers, mlflow.version = 401, "3.15.0"
    assert "upgrade to 3.16.1" in look(capsys)[1]
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    assert "ann is refused with 401" in mends(look(capsys)[1])[0]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert "no answer" in mends(look(capsys)[1])[0]


def test_a_cluster_that_cannot_be_reached_ends_it_with_one_sentence(cluster: Kubernetes, tmp_path: Path):
    cluster.login = 401
    with pytest.raises(InputError, match="expected valid credentials"):
        doctor.report(NAME, "")
    file = tmp_path / "kubeconfig"
    held = yaml.safe_load(file.read_text())
    held["clusters"][0]["cluster"]["server"] = "http://127.0.0.1:9"
    file.write_text(yaml.safe_dump(held))
    with pytest.raises(InputError, match=r"Kubernetes at http://127.0.0.1:9: expected an API server, found .*; check KUBECONFIG"):
        doctor.report(NAME, "")
