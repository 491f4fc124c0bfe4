"""How S3 is reached: the address of a store, and a client with the credentials, endpoint and region of the usual AWS variables."""

import os
import re
from typing import Any

import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError

from unimed.errors import InputError

THREADS = 8
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 10, 60
"""How long a connection may take, and how long a service may say nothing in the middle of an answer, before it is asked again."""

ATTEMPTS = 6
"""How often a request is made before its fault is told; AWS_MAX_ATTEMPTS wins over it."""


def address(url: str) -> tuple[str, str]:
    """The bucket and the prefix, which ends in a slash or is empty, of an address."""
    parts = re.fullmatch(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/([^\s?#]*))?", url)
    if not parts:
        raise InputError(f"store {url.rpartition('@')[2]!r}: expected s3://BUCKET/PREFIX; correct the address")  # no key before an @
    prefix = (parts[2] or "").strip("/")
    return parts[1], f"{prefix}/" if prefix else ""


def client() -> tuple[Any, int]:
    """An S3 client and the attempts it makes; path-style addresses with AWS_ENDPOINT_URL, checksums that every S3 service knows."""
    # No identity of the machine is meant, and to ask for one takes seconds where there is none.
    os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")
    session = botocore.session.get_session()
    try:
        attempts = session.get_config_variable("max_attempts") or ATTEMPTS
        config = Config(
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            max_pool_connections=THREADS,
            retries={"mode": "standard", "total_max_attempts": attempts},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        return session.create_client("s3", region_name=os.environ.get("AWS_REGION"), config=config), attempts
    except (BotoCoreError, ValueError) as error:
        raise InputError(f"store: expected settings for S3 in the AWS_ variables, found {type(error).__name__}; correct them") from None
