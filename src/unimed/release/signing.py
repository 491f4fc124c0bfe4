"""OpenSSF model signatures with a local key pair: signature.json covers release.json and every file beside it."""

import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unimed.errors import InputError
from unimed.release.manifest import MANIFEST, SIGNATURE, read

KEY = "UNIMED_SIGNING_KEY"
"""Environment variable: the path of the private key that releases are signed with. Without it they are not signed."""

PRIVATE, PUBLIC = "private.pem", "public.pem"

log = logging.getLogger("release")


def new_keys(folder: Path) -> tuple[Path, Path]:
    """Write a new key pair (P-256): the paths, first the private one, for its owner alone. Raises InputError where one lies."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    private, public = folder / PRIVATE, folder / PUBLIC
    if found := [path for path in (private, public) if path.exists()]:
        raise InputError(f"{found[0]}: expected no key, found one; a key is never overwritten, name another folder")
    key = ec.generate_private_key(ec.SECP256R1())
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    folder.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, stat.S_IRUSR | stat.S_IWUSR), "wb") as file:
        file.write(key.private_bytes(serialization.Encoding.PEM, *form))
    info = serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, info))
    return private, public


def sign(folder: Path) -> bool:
    """Sign a release with the key that UNIMED_SIGNING_KEY names; without one a line of the log says that it is unsigned.

    Raises InputError for a file that is no such key.
    """
    if not (key := os.environ.get(KEY)):
        log.info("the release is not signed: %s names no private key", KEY)
        return False
    with _library(), _key_file(Path(key), "private"):
        from model_signing import hashing, signing

        config = signing.Config().use_elliptic_key_signer(private_key=Path(key))
        config.set_hashing_config(hashing.Config().set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False))
        config.sign(folder, folder / SIGNATURE)
    log.info("signed with the key in %s", key)
    return True


def check(folder: Path, key: Path) -> None:
    """Hold release.json and all files it names to signature.json and a public key. Raises InputError when they do not fit."""
    path = folder / SIGNATURE
    if not path.is_file():
        raise InputError(f"{path}: expected a signature, found none; this release is unsigned")
    with _library():
        from cryptography.exceptions import InvalidSignature
        from model_signing import hashing, verifying

        with _key_file(key, "public"):
            config = verifying.Config().use_elliptic_key_verifier(public_key=key)
        covered = {MANIFEST, *read(folder)["files"]}
        others = [other for other in folder.iterdir() if other.name not in covered]
        config.set_hashing_config(hashing.Config().set_ignored_paths(paths=others, ignore_git_paths=False))
        try:
            config.verify(folder, path)
        except (InvalidSignature, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise InputError(f"{path}: expected a signature of these files by the key of {key}, found none ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextmanager
def _library() -> Iterator[None]:
    """Say what to install where the library of signatures is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise InputError(f"signatures: expected the package {error.name}, found it missing; install model-signing and pyopenssl") from error


@contextmanager
def _key_file(path: Path, kind: str) -> Iterator[None]:
    """Say in a sentence what is wrong with a key; never what it holds."""
    if not path.is_file():
        raise InputError(f"{path}: expected a {kind} key, found no file; `unimed keys new FOLDER` makes a pair")
    try:
        yield
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: expected an unencrypted {kind} elliptic-curve key as PEM, found something else") from error
