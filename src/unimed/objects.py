"""Objects of an S3 bucket under one prefix: bytes go in and out whole or not at all, retried, continued and checked by their md5."""

import base64
import hashlib
import re
import time
from collections.abc import Callable, Iterator
from io import BufferedIOBase, BufferedRandom
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from botocore.exceptions import BotoCoreError, ClientError

from unimed import s3_client, s3_faults
from unimed.errors import InputError
from unimed.s3_faults import UploadEndedError

PART = 16 * 2**20
"""Bytes of a part; a larger file goes up in several, and one that was interrupted goes on after those that arrived."""

MOST_PARTS = 10_000
"""S3 takes no more parts than this."""

CHUNK = 2**20
ABSENT = ("404", "NoSuchKey")

Moved = Callable[[int], None]
"""Called with the number of bytes that have just gone over the wire; what it raises ends the transfer."""


class Objects:
    """The objects under `s3://bucket/prefix`, by name; credentials, endpoint and region come from the usual AWS variables.

    Opening it lists one object, so that a wrong address or a wrong key shows before any work. Every method raises `InputError` for what a
    user can mend. Threads may share it.
    """

    def __init__(self, url: str):
        self.bucket, self.prefix = s3_client.address(url)
        self.client, self.attempts = s3_client.client()
        endpoint = urlsplit(self.client.meta.endpoint_url)
        self.place = f"s3://{self.bucket} at {endpoint.scheme}://{endpoint.netloc.rpartition('@')[2]}"  # no name or password in it
        if self._call("list_objects_v2", Prefix=self.prefix, MaxKeys=1).get("Name") != self.bucket:
            raise InputError(f"{self.place}: expected an S3 service, found one that answers otherwise; correct AWS_ENDPOINT_URL")

    def url(self, name: str) -> str:
        """The address of an object, for people."""
        return f"s3://{self.bucket}/{self.prefix}{name}"

    def size(self, name: str) -> int | None:
        """The bytes of an object; None when there is none."""
        found = self.version(name)
        return found and found[0]

    def read(self, name: str) -> bytes | None:
        """A small object's bytes; None when there is none."""
        data = bytearray()
        return bytes(data) if self._receive(name, 0, data.extend) is not None else None

    def version(self, name: str) -> tuple[int, str] | None:
        """The bytes of an object, and the tag that S3 gives to these and to no others; None when there is none."""
        found = self._call("head_object", Key=self.prefix + name)
        return found and (found["ContentLength"], found["ETag"])

    def piece(self, name: str, tag: str, offset: int, size: int) -> bytes:
        """Some bytes of an object. Raises InputError when it is gone or is not the one with this tag any more."""
        data = bytearray()
        if self._receive(name, offset, data.extend, offset + size, tag) is None:
            raise InputError(f"{self.url(name)}: expected the object with tag {tag}, found none; put it back, or start again")
        return bytes(data)

    def names(self, prefix: str) -> Iterator[str]:
        """The names of the objects that begin with `prefix` and lie in no folder behind it, in order."""
        more: dict[str, str] = {}
        while True:
            page = self._call("list_objects_v2", Prefix=self.prefix + prefix, Delimiter="/", **more)
            yield from (found["Key"].removeprefix(self.prefix) for found in page.get("Contents", []))
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def copy(self, name: str, stream: BufferedIOBase) -> bool:
        """Fill `stream` with an object's bytes, held against the md5 that S3 keeps; False when there is no such object.

        Of one that went up in parts or under a key of its own S3 keeps none, so of it only the length is known.
        """
        for _ in range(2):  # the wire may be at fault: once more from the start
            whole = _hash()
            stream.seek(0)
            stream.truncate()

            def take(chunk: bytes, whole: "hashlib._Hash" = whole) -> None:
                stream.write(chunk)
                whole.update(chunk)

            found = self._receive(name, 0, take)
            if found is None:
                return False
            if _kept_md5(found) in (None, whole.hexdigest()):
                return True
        raise InputError(f"{self.url(name)}: expected bytes with md5 {_kept_md5(found)}, found others twice; check the network")

    def write(self, name: str, data: bytes) -> None:
        """Put a small object, in place of one that is there; S3 refuses it if it does not arrive as it was sent."""
        self._call("put_object", Key=self.prefix + name, Body=data, ContentMD5=_header(data))

    def delete(self, name: str) -> None:
        """Remove an object; nothing where there is none."""
        self._call("delete_object", Key=self.prefix + name)

    def send(self, name: str, path: Path, md5: str, moved: Moved) -> None:
        """Put a file whose hash is known, in parts when it is large; nothing is put when its bytes are no longer those of the hash."""
        size = path.stat().st_size
        if size <= PART:
            data = path.read_bytes()
            _check_unchanged(path, md5, _hash(data).hexdigest())
            self.write(name, data)
            moved(size)
            return
        try:
            self._send_parts(self.prefix + name, path, md5, moved)
        except UploadEndedError:
            if not self._arrives(name, size):
                raise

    def _arrives(self, name: str, size: int) -> bool:
        """Whether another process with the same file ended the upload, or it ended and the answer was lost; S3 joins parts for a while."""
        for seconds in (0, 1, 2, 4, 8):
            time.sleep(seconds)
            if self.size(name) == size:
                return True
        return False

    def _send_parts(self, key: str, path: Path, md5: str, moved: Moved) -> None:
        whole, parts = _hash(), []
        upload, there = self._unfinished(key)
        length = max(PART, -(-path.stat().st_size // MOST_PARTS))
        with path.open("rb") as stream:
            for data in iter(lambda: stream.read(length), b""):
                whole.update(data)
                number, tag = len(parts) + 1, f'"{_hash(data).hexdigest()}"'
                if there.get(number) != tag:
                    sent = {"Key": key, "UploadId": upload, "PartNumber": number, "Body": data, "ContentMD5": _header(data)}
                    tag = self._call("upload_part", **sent)["ETag"]
                    moved(len(data))
                parts.append({"PartNumber": number, "ETag": tag})
        _check_unchanged(path, md5, whole.hexdigest())
        self._call("complete_multipart_upload", Key=key, UploadId=upload, MultipartUpload={"Parts": parts})

    def _unfinished(self, key: str) -> tuple[str, dict[int, str]]:
        """An upload of this object to go on with and the tags of the parts that arrived; a fresh one when there is none."""
        for upload in self._call("list_multipart_uploads", Prefix=key).get("Uploads", []):
            if upload["Key"] == key:
                return upload["UploadId"], self._parts(key, upload["UploadId"])
        return self._call("create_multipart_upload", Key=key)["UploadId"], {}

    def _parts(self, key: str, upload: str) -> dict[int, str]:
        there: dict[int, str] = {}
        marker = 0
        while True:
            page = self._call("list_parts", Key=key, UploadId=upload, PartNumberMarker=marker)
            there |= {part["PartNumber"]: part["ETag"] for part in page.get("Parts", [])}
            if not page["IsTruncated"]:
                return there
            marker = page["NextPartNumberMarker"]

    def fetch(self, name: str, path: Path, md5: str, moved: Moved) -> None:
        """Make `path` the object's bytes; what an interruption left there is kept, and `path` is gone when the bytes are wrong."""
        with path.open("a+b") as stream:
            found = self._continue(name, stream, md5, moved)
            if found != md5:  # what was left there, or the wire, may be at fault: once more from the start
                stream.truncate(0)
                found = self._continue(name, stream, md5, moved)
        if found != md5:
            path.unlink()
            raise InputError(f"{self.url(name)}: expected bytes with md5 {md5}, found {found}; delete this object and push it again")

    def _continue(self, name: str, stream: BufferedRandom, md5: str, moved: Moved) -> str:
        """Append to `stream` what it lacks of an object; the md5 of the outcome."""
        stream.seek(0)
        whole = hashlib.file_digest(stream, _hash)
        start = stream.tell()
        if start and (whole.hexdigest() == md5 or start >= (self.size(name) or 0)):
            return whole.hexdigest()

        def take(chunk: bytes) -> None:
            stream.write(chunk)
            whole.update(chunk)
            moved(len(chunk))

        if self._receive(name, start, take) is None:
            raise InputError(f"{self.url(name)}: expected an object, found none; push it, or check the address of the store")
        return whole.hexdigest()

    def _receive(
        self, name: str, start: int, take: Callable[[bytes], None], end: int | None = None, tag: str | None = None
    ) -> dict[str, Any] | None:
        """Hand on an object's bytes from `start`, across dropped connections; S3's answer, or None when there is no such object."""
        drops = 0
        while True:
            begun = start
            wanted = {"Range": f"bytes={start}-{'' if end is None else end - 1}"} if start or end is not None else {}
            found = self._call("get_object", Key=self.prefix + name, **wanted)
            if found is None:
                return None
            if tag not in (None, found["ETag"]):
                raise InputError(f"{self.url(name)}: expected the object with tag {tag}, found {found['ETag']}; start again with that")
            try:
                for chunk in found["Body"].iter_chunks(CHUNK):
                    take(chunk)
                    start += len(chunk)
                return found
            except BotoCoreError as error:
                drops = 1 if start > begun else drops + 1
                if drops == self.attempts:
                    raise s3_faults.fault(self.place, error) from None
                time.sleep(0.1 * 2**drops)

    def _call(self, operation: str, **arguments: Any) -> Any:
        """The answer of S3; None when an object that is to be read is not there."""
        try:
            return getattr(self.client, operation)(Bucket=self.bucket, **arguments)
        except ClientError as error:
            if operation in ("head_object", "get_object") and error.response["Error"]["Code"] in ABSENT:
                return None
            raise s3_faults.fault(self.place, error) from None
        except BotoCoreError as error:
            raise s3_faults.fault(self.place, error) from None


def _hash(data: bytes = b"") -> "hashlib._Hash":
    return hashlib.md5(data, usedforsecurity=False)


def _header(data: bytes) -> str:
    """The Content-MD5 of a request: S3 answers BadDigest to a body that arrives with another."""
    return base64.b64encode(_hash(data).digest()).decode()


def _kept_md5(found: dict[str, Any]) -> str | None:
    """The md5 of an object in S3's answer: its tag, unless it came in parts or was encrypted under a key of its own."""
    tag = found.get("ETag", "").strip('"')
    is_other = "SSECustomerAlgorithm" in found or "kms" in found.get("ServerSideEncryption", "")
    return tag if re.fullmatch("[0-9a-f]{32}", tag) and not is_other else None


def _check_unchanged(path: Path, md5: str, found: str) -> None:
    if found != md5:
        raise InputError(f"{path}: expected md5 {md5} as when it was hashed, found {found}; push again once nothing writes to it")
