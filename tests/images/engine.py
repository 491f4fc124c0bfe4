"""A dockerd of our own whose containers have no network, and the project's images on it, built by its own Dockerfiles on a stand-in base.

Needs root, docker's and debootstrap's packages. Everything lies in one folder that is kept: a second run builds only what has changed.
"""

import contextlib
import functools
import http.server
import json
import os
import shutil
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import docker

from conftest import ROOT

FOLDER = Path(tempfile.gettempdir()) / "unimed-images"
SOCKET = f"unix://{FOLDER}/docker.sock"
BASE = "python:stand-in"
PATIENCE_SECONDS = 60
FILES = (
    ".dvc/config", ".dockerignore", "dvc.yaml", "params.yaml", "exclusions.csv", "pyproject.toml", "requirements.lock", "LICENSE", "NOTICE",
    "README.md",
)  # fmt: skip
PACKAGES = "ca-certificates,netbase,python3,python3-dev,python3-pip,python3-venv,tzdata"
"""What the official slim Python image has besides Debian's core; python3-dev for the headers, which it has, too."""


def need(*programs: str) -> None:
    """Fail with the names of programs that are missing: a test that cannot run has not passed."""
    missing = [name for name in programs if shutil.which(name) is None]
    assert not missing, f"make images-test: expected {missing} to be installed; docs/images.md lists Debian's packages"
    assert os.geteuid() == 0, "make images-test: expected root, which dockerd and debootstrap need"


@contextlib.contextmanager
def running() -> Iterator[docker.DockerClient]:
    """A client of a fresh dockerd without bridge and firewall; the daemon ends with the block."""
    need("docker", "dockerd", "runc", "containerd", "debootstrap", "setpriv")
    FOLDER.mkdir(exist_ok=True)
    flags = ["--iptables=false", "--ip6tables=false", "--bridge=none"]
    places = [f"--data-root={FOLDER}/root", f"--exec-root={FOLDER}/exec", f"--pidfile={FOLDER}/docker.pid", f"--host={SOCKET}"]
    with (FOLDER / "dockerd.log").open("w") as log:
        # It ends with this process, however that ends.
        daemon = subprocess.Popen(["setpriv", "--pdeathsig", "TERM", "dockerd", *flags, *places], stdout=log, stderr=log)
    try:
        with contextlib.closing(_connected(daemon)) as client:
            yield client
    finally:
        daemon.terminate()
        daemon.wait(PATIENCE_SECONDS)


def _connected(daemon: subprocess.Popen) -> docker.DockerClient:
    """A client of the daemon once it answers; fails with its log when it ends, as it does where another one has the folder."""
    for _ in range(PATIENCE_SECONDS * 5):
        assert daemon.poll() is None, f"dockerd did not start:\n{(FOLDER / 'dockerd.log').read_text()[-3000:]}"
        with contextlib.suppress(docker.errors.DockerException):
            client = docker.DockerClient(base_url=SOCKET, timeout=600)
            if (FOLDER / "docker.pid").read_text() == str(daemon.pid):
                return client
        time.sleep(0.2)
    raise AssertionError(f"dockerd did not answer:\n{(FOLDER / 'dockerd.log').read_text()[-3000:]}")


def place_base(client: docker.DockerClient) -> None:
    """Import the stand-in for the official Python image: the same Debian and line of Python, made by debootstrap unless it lies here."""
    archive = FOLDER / "bookworm.tar"
    if not archive.exists():
        _bootstrap(archive)
    if not client.images.list(BASE):
        subprocess.run(["docker", "--host", SOCKET, "import", "--change", "ENV LANG=C.UTF-8", archive, BASE], check=True)


def _bootstrap(archive: Path) -> None:
    """Make a root file system with this machine's mirror and certificates, with Python where the official image has it."""
    with tempfile.TemporaryDirectory(dir=FOLDER) as name:
        root = Path(name) / "root"
        subprocess.run(["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", root, *_mirror()], check=True)
        (root / "usr/lib/python3.11/EXTERNALLY-MANAGED").unlink()
        for program in ("python", "python3"):
            (root / "usr/local/bin" / program).symlink_to("/usr/bin/python3")
        if certificates := ssl.get_default_verify_paths().cafile:
            shutil.copyfile(certificates, root / "etc/ssl/certs/ca-certificates.crt")
        for downloads in ("var/cache/apt", "var/lib/apt/lists"):
            shutil.rmtree(root / downloads)
        subprocess.run(["tar", "--numeric-owner", "-C", root, "-cf", f"{archive}.partial", "."], check=True)
    Path(f"{archive}.partial").rename(archive)


def _mirror() -> list[str]:
    """Debian's mirror as this machine's apt knows it; debootstrap has one of its own."""
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Codename: bookworm"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[:1]


def build(client: docker.DockerClient, project: Path) -> dict[str, str]:
    """Run `make images` of the project in a folder, with this machine's index and wheels; returns the names of the images."""
    with _served(os.environ.get("PIP_FIND_LINKS", "")) as wheels:
        given = {"ENGINE": "docker", "DOCKER_HOST": SOCKET, "DOCKER_BUILDKIT": "0", "OPTIONS": "--network host", "BASE": BASE}
        given |= {"WHEELS": wheels, "INDEX": os.environ.get("PIP_INDEX_URL", ""), "REGISTRY": ""}
        done = subprocess.run(["sh", "docker/images.sh"], cwd=project, env=os.environ | given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-6000:]
    images = json.loads((project / "images.json").read_text())
    _forget(client, list(images.values()))
    return images


def _forget(client: docker.DockerClient, kept: list[str]) -> None:
    """Remove earlier builds; what of them served as a cache goes after a day, so that the folder does not grow for ever."""
    for image in client.images.list():
        for tag in image.tags:
            if tag.startswith("localhost/unimed-") and tag not in kept:
                client.images.remove(tag, noprune=True)
    client.images.prune(filters={"dangling": True, "until": "24h"})


@contextlib.contextmanager
def _served(wheels: str) -> Iterator[str]:
    """The address of a folder of wheels on the loopback: a build cannot see this machine's folders."""
    if not Path(wheels).is_dir() or not wheels:
        yield wheels
        return
    handler = functools.partial(_Quiet, directory=wheels)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def copy_project(folder: Path) -> Path:
    """The project as an unpacked archive: what is built and what is compiled are the same code, whatever is edited meanwhile."""
    leave = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("src", "components", "pipelines", "docker"):
        shutil.copytree(ROOT / name, folder / name, ignore=leave)
    for name in FILES:
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder
