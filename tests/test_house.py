"""House rules as ratchets: each names the places that break it."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from conftest import ROOT
from pipelines import stages
from unimed import settings

LONGEST_FUNCTION = 60
LONGEST_FILE = 250
LONGEST_FIRST_LINE = 125
SKIPPED = {
    ".venv",
    ".git",
    "__pycache__",
    "tmp",
    "cache",
    "data",
    "models",
    "reports",
    "runs",
    "mlartifacts",
    ".ckpt",
    ".pytest_cache",
    ".ruff_cache",
}
"""Folders of the working tree that hold nothing written by hand."""

INHERITED = ("forward", "render", "on_")
"""How methods begin whose meaning their base class documents."""


def _tracked() -> list[Path]:
    """The files of the project: what git lists or would add, or, in an unpacked archive, what lies outside the folders above."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if (ROOT / ".git").exists() and listed.returncode == 0:
        return sorted(ROOT / name for name in set(listed.stdout.splitlines()) if (ROOT / name).is_file())
    files = (file for file in ROOT.rglob("*") if file.is_file())
    return sorted(file for file in files if not SKIPPED & set(file.relative_to(ROOT).parts[:-1]) and "egg-info" not in str(file))


FILES = _tracked()
SOURCES = [file for file in FILES if file.suffix == ".py"]
TREES = {file: ast.parse(file.read_text()) for file in SOURCES}
LIBRARY = [file for file in SOURCES if file.relative_to(ROOT).parts[0] in ("src", "components", "pipelines")]


def _name(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def _texts() -> Iterator[tuple[Path, str]]:
    for file in FILES:
        try:
            yield file, file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture or another binary file


def _calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_there_is_something_to_look_at():
    assert len(LIBRARY) > 20


def test_no_function_is_longer_than_a_screen():
    functions = [
        (node.end_lineno - node.lineno + 1, f"{_name(file)}: {node.name}")
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None
    ]
    assert not [place for lines, place in functions if lines > LONGEST_FUNCTION]


def test_no_file_is_longer_than_an_idea():
    assert not [(_name(file), lines) for file in SOURCES if (lines := len(file.read_text().splitlines())) > LONGEST_FILE]


def test_nothing_is_printed():
    printed = [f"{_name(file)}:{call.lineno}" for file in LIBRARY for name, call in _calls(TREES[file]) if name == "print"]
    assert not printed


def test_no_path_of_a_machine_is_written_down():
    pattern = re.compile(r"(?<![\w.}])/(home|root|Users|mnt|work|opt|scratch)/\w")
    assert not [f"{_name(file)}: {match[0]}" for file, text in _texts() for match in pattern.finditer(text)]


def test_no_registry_host_is_written_down():
    pattern = re.compile(r"(--extra-index-url|--index-url|--find-links|index\s*=\s*.https?:|pypi" + r"\.org|pythonhosted)")
    allowed = {"tests/test_house.py"}
    assert not [f"{_name(file)}: {match[0]}" for file, text in _texts() for match in pattern.finditer(text) if _name(file) not in allowed]


def test_the_lock_holds_exact_versions_that_any_machine_can_install():
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and not line.lstrip().startswith("#")]
    assert len(lines) > 100
    assert not [line for line in lines if not re.fullmatch(r"[A-Za-z0-9_.\[\]-]+==[0-9][A-Za-z0-9.]*", line)]


def test_no_file_name_holds_a_version_or_a_copy():
    pattern = re.compile(r"(_v\d+|copy|\bbak\b|_bak|_old|_new|_final|20\d\d[-_]?\d\d)", re.IGNORECASE)
    assert not [_name(file) for file in FILES if pattern.search(_name(file))]


def test_no_module_is_a_drawer():
    drawers = {"utils", "util", "helpers", "helper", "base", "common", "misc", "registry", "factory"}
    assert not [_name(file) for file in SOURCES if file.stem in drawers]


def test_nothing_is_loaded_that_can_run_code():
    banned = {"torch.load", "pickle.load", "pickle.loads", "yaml.load", "eval", "exec", "joblib.load"}
    calls = [(file, name, call) for file in LIBRARY for name, call in _calls(TREES[file])]
    loose = [
        f"{_name(file)}:{call.lineno}"
        for file, name, call in calls
        for word in call.keywords
        if (word.arg == "trust_remote_code" or (word.arg == "strict" and name.endswith("load_state_dict")))
        and isinstance(word.value, ast.Constant)
        and word.value.value is (word.arg == "trust_remote_code")
    ]
    torch_file = "src/unimed/model/checkpoint.py"
    found = [(_name(file), name, call) for file, name, call in calls if name in banned]
    [allowed] = [call for file, name, call in found if (file, name) == (torch_file, "torch.load")]
    assert {("weights_only", "True"), ("mmap", "True")} <= {(word.arg, ast.unparse(word.value)) for word in allowed.keywords}
    assert not loose + [f"{file}:{call.lineno} {name}" for file, name, call in found if call is not allowed]
    assert not [_name(file) for file in LIBRARY if any("pickle" in name for name in _imports(TREES[file]))]


def test_mlflow_is_imported_where_runs_are_recorded_and_where_releases_are_kept_and_served():
    users = {_name(file) for file in LIBRARY if any(name.split(".")[0] == "mlflow" for name in _imports(TREES[file]))}
    places = ("src/unimed/mlflow_server.py", "src/unimed/recorder.py", "src/unimed/release/", "src/unimed/serving/")
    assert users > {"src/unimed/recorder.py"}
    assert not [name for name in users if not name.startswith(places)]


def test_every_public_name_says_what_it_is():
    missing = [
        f"{_name(file)}: {name}"
        for file in LIBRARY
        if file.name != "__init__.py"
        for name, node in _public(TREES[file])
        if not (note := ast.get_docstring(node)) or len(note.splitlines()[0]) > max(LONGEST_FIRST_LINE, 140 * isinstance(node, ast.Module))
    ]
    assert not missing


def _public(tree: ast.Module) -> Iterator[tuple[str, ast.Module | ast.ClassDef | ast.FunctionDef]]:
    yield "module", tree
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name, node
            members = node.body if isinstance(node, ast.ClassDef) else []
            for inner in members:
                if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_") and not inner.name.startswith(INHERITED):
                    yield f"{node.name}.{inner.name}", inner


def _imports(tree: ast.AST) -> set[str]:
    """Every module that a tree imports, functions included; `from a import b` counts as a and as a.b."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _needed(program: Path) -> set[str]:
    """The modules in folders of src/unimed that a program imports, with all that those import in turn."""
    seen: set[Path] = set()
    waiting = [program]
    while waiting:
        files = {ROOT / "src" / f"{name.replace('.', '/')}.py" for name in _imports(TREES[waiting.pop()])} & TREES.keys()
        waiting += files - seen
        seen |= files
    return {name.removeprefix("src/unimed/") for file in seen if (name := _name(file)).count("/") > 2}


@pytest.mark.parametrize("stage", stages.read((ROOT / "dvc.yaml").read_text()), ids=lambda stage: stage.name)
def test_a_stage_lists_all_code_that_its_program_imports(stage: stages.Stage):
    program = ROOT / f"components/{stage.component}.py"
    assert program in TREES, f"{program.name} is missing"
    listed = tuple(path.removeprefix("src/unimed/") for path in stage.code if path.startswith("src/unimed/"))
    assert not [module for module in _needed(program) if not module.startswith(listed)]


def test_the_library_knows_nothing_of_components_or_runners():
    """Only job.py looks at the declaration, to learn which stage it is; cluster.py loads the pipelines of the project it is called in."""
    upward = [
        f"{_name(file)}: {name}"
        for file in LIBRARY
        for name in _imports(TREES[file])
        if name.split(".")[0] in ("components", "kfp") or (name.split(".")[0] == "pipelines" and file.name not in ("job.py", "cluster.py"))
        if file.relative_to(ROOT).parts[0] == "src"
    ]
    assert not upward


def test_every_section_of_params_is_some_stage_s():
    used = {key.split(".")[0] for stage in stages.read((ROOT / "dvc.yaml").read_text()) for key in stage.params}
    given = yaml.safe_load((ROOT / "params.yaml").read_text()).keys()
    assert given - settings.ASIDE == used


def test_make_prints_at_most_twelve_targets():
    targets = re.findall(r"(?m)^([a-z-]+):.*##", (ROOT / "Makefile").read_text())
    assert {"setup", "demo", "test", "test-fast", "check", "repro", "lock", "clean", "help"} <= set(targets)
    assert len(targets) <= 12
