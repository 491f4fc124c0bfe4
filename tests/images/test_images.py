"""The images as a cluster meets them: any user, nothing to write to, no network, no command of their own."""

import logging
import subprocess
from pathlib import Path

import docker
import pytest

from conftest import ROOT
from images.strict_runner import POD, run
from unimed.data import phantom_files

pytestmark = [pytest.mark.images, pytest.mark.timeout(1800)]
MOST_BYTES = {"ops": 2.6e9, "train": 3.2e9}
"""With torch for CPUs: 2.16 and 2.60 GB when this was written. What grows past it should be wanted."""

CODE = {"LICENSE", "NOTICE", "README.md", "components", "dvc.yaml", "exclusions.csv", "pipelines", "pyproject.toml", "src"}
both = pytest.mark.parametrize("name", ["ops", "train"])
log = logging.getLogger("images")


def shell(client: docker.DockerClient, image: str, script: str, **more) -> str:
    """What a script prints in a pod; it must succeed."""
    code, text = run(client, image, ["sh", "-euc", script], **{**POD, **more})
    assert code == 0, text
    return text


@both
def test_an_image_names_a_numeric_user_no_entrypoint_and_its_revision(client, project, images, name):
    revision = subprocess.run(["git", "rev-parse", "HEAD"], cwd=project, capture_output=True, text=True, check=True).stdout.strip()
    config = client.images.get(images[name]).attrs["Config"]
    assert config["User"] == "65532:65532"
    assert not config["Entrypoint"]
    assert config["Labels"]["org.opencontainers.image.revision"] == revision
    assert images[name] == f"localhost/unimed-{name}:{revision}"


@both
def test_an_image_is_no_larger_than_it_must_be(client, images, name):
    size = client.images.get(images[name]).attrs["Size"]
    log.info("%s: %.2f GB", images[name], size / 1e9)
    assert size < MOST_BYTES[name]


@both
def test_packages_fit_together_and_those_of_runners_and_tests_are_not_there(client, images, name):
    assert "No broken requirements" in shell(client, images[name], "pip --python /venv/bin/python check")
    names = shell(client, images[name], "ls /venv/lib/python3.11/site-packages").split()
    assert not {"kfp", "dvc", "pytest", "moto", "uv", "pip"} & set(names)
    assert {"torch", "transformers", "boto3", "mlflow"} < set(names)


@both
def test_an_image_holds_the_project_s_code_and_nothing_else_of_its_folder(client, images, name):
    assert set(shell(client, images[name], "ls -A /app").split()) == CODE
    assert "egg-info" not in shell(client, images[name], "find /app")


@both
def test_the_user_can_write_to_no_file_or_folder_of_the_image(client, images, name):
    found = shell(client, images[name], "find / -xdev ! -type l -writable 2>/dev/null || true", read_only=False, tmpfs={})
    assert {line for line in found.split() if not line.startswith(("/dev", "/proc", "/sys"))} <= {"/tmp", "/var/tmp", "/run/lock"}


@both
@pytest.mark.parametrize("user", ["65532:65532", "1000740000:0"])
def test_any_user_has_a_name_a_home_and_can_read_every_file(client, images, name, user):
    script = "python -c 'import getpass; getpass.getuser()'; test -w $HOME; find /app /venv ! -readable | grep . && exit 1; unimed --help"
    assert "predict" in shell(client, images[name], script, user=user)


def test_a_compiler_is_in_the_train_image_only(client, images):
    assert run(client, images["ops"], ["sh", "-c", "command -v gcc g++ cc"], **POD)[0] != 0
    shell(client, images["train"], "command -v g++")


def test_the_train_image_starts_without_a_gpu_and_compiles_what_deepspeed_needs(client, images):
    program = "import datasets, kubernetes, peft, trl; from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder as Op; Op().load()"
    assert "deepspeed_shm_comm" in shell(client, images["train"], f"python -c '{program}'; ls /tmp/.cache/torch_extensions/*")


def test_a_component_runs_in_a_pod_and_leaves_its_outputs(client, images, tmp_path: Path):
    phantom_files.write(tmp_path / "raw", cases=6, slices=2, seed=0)
    made, project = tmp_path / "made", tmp_path / "project"
    for folder in (made, project):
        folder.mkdir()
        folder.chmod(0o777)
    (project / "exclusions.csv").write_bytes((ROOT / "exclusions.csv").read_bytes())
    command = ["python", "-m", "components.ingest", "--raw", "/raw", "--shards", "/made/shards", "--tables", "/made/tables"]
    text = (ROOT / "params.yaml").read_text()
    volumes = {
        str(tmp_path / name): {"bind": f"/{name}", "mode": mode} for name, mode in (("raw", "ro"), ("made", "rw"), ("project", "rw"))
    }
    code, said = run(client, images["ops"], [*command, "--params", text], volumes, **POD, working_dir="/project")
    assert code == 0, said
    assert list(made.glob("tables/*.parquet"))
    assert {file.stat().st_uid for file in made.rglob("*")} == {65532}
    (tmp_path / "raw/SAMed2Dv1").rename(tmp_path / "raw/gone")
    assert run(client, images["ops"], [*command, "--params", text], volumes, **POD, working_dir="/project")[0] == 78
