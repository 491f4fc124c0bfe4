"""Signatures: a new key pair signs a release, and any byte that changes, in the signature too, is found with the public key alone."""

import logging
import re
import shutil
import stat

import pytest
import released

from unimed.errors import InputError
from unimed.release import manifest, signing


@pytest.fixture
def release(released_project, tmp_path):
    """A copy of the folder of an unsigned release."""
    return shutil.copytree(released_project / "reports/release", tmp_path / "release")


@pytest.fixture
def keys(tmp_path, monkeypatch):
    """A key pair, the private one named by the environment; gives the path of the public one."""
    private, public = signing.new_keys(tmp_path / "keys")
    monkeypatch.setenv(signing.KEY, str(private))
    return public


def test_a_private_key_is_for_its_owner_and_is_never_overwritten(tmp_path):
    private, public = signing.new_keys(tmp_path / "keys")
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert private.read_text().startswith("-----BEGIN PRIVATE KEY-----") and public.read_text().startswith("-----BEGIN PUBLIC KEY-----")
    before = private.read_bytes()
    for left in (private, public):
        (private if left is public else public).unlink(missing_ok=True)
        with pytest.raises(InputError, match=rf"{left.name}: expected no key, found one"):
            signing.new_keys(tmp_path / "keys")
        if left is private:
            assert private.read_bytes() == before
            public.touch()


def test_without_a_key_a_release_is_unsigned_and_says_so(release, monkeypatch, caplog):
    monkeypatch.delenv(signing.KEY, raising=False)
    with caplog.at_level(logging.INFO):
        assert signing.sign(release) is False
    assert "the release is not signed: UNIMED_SIGNING_KEY names no private key" in caplog.text
    assert not (release / "signature.json").exists()


def test_a_signature_fits_its_release_wherever_that_lies(release, keys, tmp_path):
    assert signing.sign(release) is True
    signing.check(shutil.copytree(release, tmp_path / "elsewhere"), keys)


def test_parts_and_notes_beside_the_release_do_not_matter(release, keys):
    signing.sign(release)
    (release / "registered.json").write_text("{}")
    (release / "router").mkdir()
    (release / "router/model.safetensors").write_bytes(b"weights")
    signing.check(release, keys)


def test_one_changed_byte_of_any_signed_file_is_found(release, keys):
    signing.sign(release)
    for name in ["release.json", *manifest.read(release)["files"]]:
        whole = (release / name).read_bytes()
        released.flip(release / name, len(whole) // 2)
        with pytest.raises(InputError, match=re.escape(name) if name != "release.json" else "expected"):
            signing.check(release, keys)
        (release / name).write_bytes(whole)
    signing.check(release, keys)


def test_one_changed_byte_of_the_signature_is_found(release, keys):
    signing.sign(release)
    signature = release / "signature.json"
    whole = signature.read_bytes()
    places = [*range(0, len(whole), 23), len(whole) - 1]
    assert len(places) > 80
    for place in places:
        signature.write_bytes(whole)
        released.flip(signature, place)
        with pytest.raises(InputError, match=r"signature.json: expected a signature of these files"):
            signing.check(release, keys)


def test_a_file_that_was_added_and_named_after_the_signature_is_found(release, keys):
    signing.sign(release)
    signature = (release / "signature.json").read_bytes()
    (release / "signature.json").unlink()
    (release / "extra.json").write_text("{}")
    manifest.name_files(release)
    (release / "signature.json").write_bytes(signature)
    with pytest.raises(InputError, match="expected a signature of these files"):
        signing.check(release, keys)


def test_another_key_does_not_fit(release, keys, tmp_path):
    signing.sign(release)
    _, other = signing.new_keys(tmp_path / "other")
    with pytest.raises(InputError, match=r"signature.json: expected a signature of these files by the key of .*other.*Key mismatch"):
        signing.check(release, other)


def test_an_unsigned_release_does_not_pass_for_a_signed_one(release, keys):
    with pytest.raises(InputError, match=r"signature.json: expected a signature, found none; this release is unsigned"):
        signing.check(release, keys)


@pytest.mark.parametrize("content", ["", "no key", "-----BEGIN PRIVATE KEY-----\nsecret\n-----END PRIVATE KEY-----\n"])
def test_a_file_that_is_no_key_is_one_sentence_without_its_content(release, tmp_path, monkeypatch, content):
    (tmp_path / "broken.pem").write_text(content)
    monkeypatch.setenv(signing.KEY, str(tmp_path / "broken.pem"))
    with pytest.raises(InputError, match=r"broken.pem: expected an unencrypted private elliptic-curve key") as caught:
        signing.sign(release)
    assert "secret" not in str(caught.value)
    assert not (release / "signature.json").exists()


def test_a_key_that_is_not_there_is_named(release, tmp_path, monkeypatch):
    monkeypatch.setenv(signing.KEY, str(tmp_path / "none.pem"))
    with pytest.raises(InputError, match=r"none.pem: expected a private key, found no file"):
        signing.sign(release)
