"""Commands about the project in the working folder and its runs on a cluster. They drive `pipelines`, which describes that very project."""

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer

from unimed import environment
from unimed import params as sections
from unimed.errors import InputError

BUILT = Path("build/uni-medvlm.yaml")
PARAMS = Path("params.yaml")

Numbers = Annotated[Path, typer.Option("--params", help="The numbers of every stage.")]
Out = Annotated[Path, typer.Option(help="The file to write.")]
Raw = Annotated[str, typer.Option(help="Where pods find the raw data, if not in the DVC remote: a URI that Kubeflow's launcher can read.")]
Host = Annotated[str, typer.Option(envvar="KFP_HOST", help="Address of the Kubeflow Pipelines API; its token is read from KFP_TOKEN.")]
Namespace = Annotated[str | None, typer.Option(help="Your namespace, where Kubeflow serves several users.")]


def add(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (compile_, submit, plan, adopt, doctor, gate, release):
        app.command(command.__name__.rstrip("_"))(command)


def compile_(params: Numbers = PARAMS, raw: Raw = "", out: Out = BUILT) -> None:
    """Write the stages as one file that Kubeflow Pipelines runs."""
    made = _compiled(params, raw, out)
    typer.echo(f"{len(made.stages)} stages, gate and release are in {out}")
    if not made.store:
        typer.echo("no DVC remote on S3: every artifact travels whole, nothing is kept to adopt or to train on several machines")


def submit(
    host: Host,
    params: Numbers = PARAMS,
    raw: Raw = "",
    experiment: Annotated[str, typer.Option(help="The experiment that the run belongs to.")] = "uni-medvlm",
    namespace: Namespace = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the run to its end; the exit code says how it ended.")] = False,
) -> None:
    """Start a run on Kubeflow: compile, upload as a version of this revision, run."""
    made = _compiled(params, raw, BUILT)
    client = _pipelines("submit")
    run = client.submit(BUILT, host, experiment, made.revision, namespace, made.cluster.service_account)
    typer.echo(f"run      {run.id}\nversion  {run.version}\nsee      {run.url}")
    if not wait:
        return
    outcome = client.wait(host, run.id)
    typer.echo(outcome.text)
    raise typer.Exit(outcome.code)


def plan(
    params: Numbers = PARAMS,
    gpu_hour: Annotated[
        float | None, typer.Option(min=0, help="What a GPU costs an hour, in any currency; costs are told only with it.")
    ] = None,
) -> None:
    """Print how many GPU hours training takes at full size, then which stages would run, and why; no data are touched."""
    due, text = _pipelines("due"), _text(params)
    numbers = sections.load(text)
    # First, since they need no data, and the rest asks for some.
    if "foundation" in numbers and (found := _pipelines("hours").lines(numbers)):
        typer.echo(f"{_pipelines('hours').table(*found, gpu_hour)}\n")
    typer.echo(due.table(due.judge(_pipelines("plan").gather(Path(), text), Path())))


def adopt(
    run: Annotated[str, typer.Argument(help="The id of a run, or a file that `unimed compile` wrote.")],
    host: Annotated[str, typer.Option(envvar="KFP_HOST", help="Address of the Kubeflow Pipelines API.")] = "",
) -> None:
    """Take over what a run on the cluster made: writes dvc.lock, so that `dvc pull` fetches it and `dvc repro` finds it done."""
    adoption = _pipelines("adopt")
    if not Path(run).is_file() and not host:
        raise InputError(f"{run}: expected a compiled pipeline, or a run with --host, found neither; give Kubeflow's address")
    spec = adoption.read(Path(run)) if Path(run).is_file() else _pipelines("submit").fetch(host, run)["spec"]
    typer.echo(adoption.summary(*adoption.adopt(spec, Path())))


def doctor(
    namespace: Annotated[str, typer.Option(help="Where the pods run.")] = "unimed",
    host: Annotated[str, typer.Option(envvar="KFP_HOST", help="Address of the Kubeflow Pipelines API.")] = "",
) -> None:
    """Hold a cluster to what the pipeline needs, and say how to mend what is missing."""
    raise typer.Exit(_pipelines("doctor").report(namespace, host))


def gate(params: Numbers = PARAMS) -> None:
    """Judge what the stages made: reports/gate holds the verdict and its reasons."""
    _control("gate", params)


def release(params: Numbers = PARAMS) -> None:
    """Register the parts that passed the gate as one release."""
    _control("release", params)


def _compiled(params: Path, raw: str, out: Path) -> Any:
    made = _pipelines("plan").gather(Path(), _text(params), raw)
    graph = _pipelines("uni_medvlm")
    out.parent.mkdir(parents=True, exist_ok=True)
    graph.write(made, out)
    return made


def _control(name: str, params: Path) -> None:
    """Run what follows the stages by its own command, as a cluster does."""
    [stage] = [stage for stage in _pipelines("plan").CONTROL if stage.name == name]
    _, *words = stage.command
    done = subprocess.run([sys.executable, *words, "--params", _text(params)], check=False)
    if done.returncode:
        raise typer.Exit(done.returncode)
    typer.echo(f"see {', '.join(stage.outputs.values())}")


def _pipelines(name: str) -> ModuleType:
    """A module of the project's own pipelines; raises `InputError` outside a project, or where what it imports is not installed."""
    if not Path("dvc.yaml").exists():
        raise InputError("dvc.yaml: expected the project in the working folder, found none; change into a clone of it")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    environment.start_logging()
    try:
        return importlib.import_module(f"pipelines.{name}")
    except ModuleNotFoundError as error:
        raise InputError(f"pipelines: expected the package {error.name}, found it missing; install with `make setup`") from None


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError as error:
        raise InputError(f"{file}: expected a file of params, found {error.strerror}") from None
