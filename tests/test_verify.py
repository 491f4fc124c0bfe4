"""`unimed verify`: a release that is as it was made passes; any byte of any file that changed is found and named in one sentence."""

import json
import shutil
import subprocess
import sys

import pytest
import released

from unimed.errors import InputError
from unimed.release import manifest, signing
from unimed.release.verify import verify


@pytest.fixture
def project(released_project, tmp_path, monkeypatch):
    """A copy of the project whose release is signed; the public key lies in keys/."""
    root = released.copied(released_project, tmp_path)
    private, _ = signing.new_keys(root / "keys")
    monkeypatch.setenv(signing.KEY, str(private))
    signing.sign(root / "reports/release")
    return root


def verified(root) -> list[str]:
    return list(verify(root / "reports/release", root / "models", root / "keys/public.pem"))


def test_an_untouched_release_passes_and_says_what_was_looked_at(project):
    lines = verified(project)
    papers = ["DATA.md", "MLmodel", "README.md", "croissant.json", "pyfunc_model.py", "sbom.cdx.json", "scores.parquet"]
    names = ["release.json", *papers, "signature.json"]
    parts = ["foundation", "aligned", "vqa_expert", "grounding_expert", "router", "reasoner"]
    assert [line.partition(":")[0] for line in lines] == [*names, *parts, "base"]
    assert not [line for line in lines if "not" in line]


@pytest.mark.slow
def test_one_changed_byte_of_any_file_of_release_or_parts_is_found(project):
    files = [path for folder in ("reports/release", "models") for path in sorted((project / folder).rglob("*")) if path.is_file()]
    assert len(files) > 30
    for file in files:
        whole = file.read_bytes()
        released.flip(file, len(whole) // 2)
        with pytest.raises(InputError) as caught:
            verified(project)
        assert "expected" in str(caught.value) and "found" in str(caught.value)
        file.write_bytes(whole)
    verified(project)


@pytest.mark.parametrize("name", ["README.md", "DATA.md", "croissant.json", "sbom.cdx.json", "scores.parquet"])
def test_a_file_that_changed_is_named_without_a_key_too(project, name):
    released.flip(project / "reports/release" / name)
    with pytest.raises(InputError, match=rf"reports/release/{name}: expected sha256 "):
        list(verify(project / "reports/release", project / "models"))


def test_a_file_that_is_gone_or_was_added_is_named(project):
    (project / "reports/release/note.txt").write_text("hello")
    with pytest.raises(InputError, match=r"expected to name every file beside it, found nothing about note.txt"):
        verified(project)
    (project / "reports/release/note.txt").unlink()
    (project / "reports/release/DATA.md").unlink()
    with pytest.raises(InputError, match=r"expected the file DATA.md beside it, found none"):
        verified(project)


def test_a_path_that_leaves_the_folder_is_refused(project):
    path = project / "reports/release/release.json"
    content = json.loads(path.read_text())
    content["files"]["../gate/verdict.json"] = "0" * 64
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"expected the file ../gate/verdict.json beside it"):
        list(verify(project / "reports/release", project / "models"))


def test_another_model_in_the_place_of_a_part_is_named(project):
    shutil.rmtree(project / "models/vqa_expert")
    shutil.copytree(project / "models/grounding_expert", project / "models/vqa_expert")
    with pytest.raises(InputError, match=r"models/vqa_expert/manifest.json: expected sha256"):
        verified(project)


def test_parts_inside_a_fetched_release_are_checked_too(project):
    shutil.copytree(project / "models/router", project / "reports/release/router")
    verified(project)
    released.flip(project / "reports/release/router/model.safetensors")
    with pytest.raises(InputError, match=r"release/router/model.safetensors: expected sha256"):
        verified(project)


def test_parts_that_are_not_here_are_said_to_be_so(project):
    shutil.rmtree(project / "models")
    assert "router: not here" in verified(project)


@pytest.mark.parametrize("change", [{"manifest_sha256": "0" * 64}, {"files": {}}])
def test_a_base_that_is_not_the_foundation_is_found(project, change):
    """Named anew and sealed anew, as one would to hide it; only without the signature does it come this far."""
    path = project / "reports/release/release.json"
    content = manifest.read(path.parent)
    path.write_text(json.dumps({**content, "base": content["base"] | change}))
    with pytest.raises(InputError, match=r"release.json: expected .* found"):
        list(verify(path.parent, project / "models"))


def test_a_signature_is_asked_for_by_the_key_alone(project):
    release = project / "reports/release"
    assert "signature.json: not checked; give the public key with --key" in list(verify(release, project / "models"))
    (release / "signature.json").unlink()
    assert "signature.json: not here, this release is unsigned" in list(verify(release, project / "models"))
    with pytest.raises(InputError, match="this release is unsigned"):
        verified(project)


@pytest.mark.parametrize("content", ["[]", "{}", '{"name": 1}', "no JSON"])
def test_what_is_no_release_is_an_error(project, content):
    (project / "reports/release/release.json").write_text(content)
    with pytest.raises(InputError, match=r"release.json: expected"):
        verified(project)


@pytest.mark.slow
def test_the_command_ends_with_one_sentence_and_code_78(project):
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from unimed.cli import main; main()", "verify", "reports/release", *words]
        return subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)

    done = run("--key", "keys/public.pem")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "all of it matches"), done.stderr
    released.flip(project / "reports/release/DATA.md")
    failed = run("--key", "keys/public.pem")
    assert failed.returncode == 78
    assert failed.stderr.startswith("unimed: reports/release/DATA.md: expected sha256 ") and len(failed.stderr.splitlines()) == 1
