"""What went wrong with S3, as one sentence with a remedy and without a secret: of what a server says only its code is shown."""

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    SSLError,
)
from botocore.exceptions import ConnectionError as BrokenConnection

from unimed.errors import InputError

CREDENTIALS = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "TokenRefreshRequired", "InvalidSecurity")
REGION = ("AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraintException", "301", "IncorrectEndpoint")
DENIED = ("AccessDenied", "403", "AllAccessDisabled", "AccountProblem")
SET_KEY = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to a key of this store"


class UploadEndedError(InputError):
    """An unfinished upload that is not there any more."""


def fault(place: str, error: BotoCoreError | ClientError) -> InputError:
    """What was expected at `place`, what was found, and what to do."""
    if not isinstance(error, ClientError):
        return InputError(f"{place}: {_unanswered(error)}")
    kind = UploadEndedError if error.response["Error"]["Code"] == "NoSuchUpload" else InputError
    return kind(f"{place}: {_answered(error)}")


def _unanswered(error: BotoCoreError) -> str:
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return f"expected a key, found none; {SET_KEY}"
    if isinstance(error, SSLError):
        return "expected a certificate that this machine trusts, found another; set AWS_CA_BUNDLE or correct AWS_ENDPOINT_URL"
    if isinstance(error, BrokenConnection | HTTPClientError | IncompleteReadError):
        return f"expected an answer, found {type(error).__name__}; check AWS_ENDPOINT_URL and the network, then try again"
    return f"expected access, found {type(error).__name__}; check the AWS_ variables and ~/.aws/config"


def _answered(error: ClientError) -> str:
    code = error.response["Error"]["Code"]
    status = error.response["ResponseMetadata"].get("HTTPStatusCode", 0)
    if code in CREDENTIALS:
        return f"expected a valid key, found that it is not ({code}); {SET_KEY}"
    if code in DENIED:
        return f"expected a key that may {error.operation_name}, found that it may not ({code}); grant it that, or use another key"
    if code == "NoSuchBucket":
        return "expected a bucket, found none of that name; make it, or correct the address of the store"
    if code in REGION:
        return f"expected the region of the bucket, found another ({code}); set AWS_REGION"
    if code == "RequestTimeTooSkewed":
        return "expected this machine's clock to be right, found it off by minutes; set it"
    if code == "BadDigest":
        return "expected bytes to arrive as they were sent, found them changed on the way (BadDigest); try again"
    if code == "NoSuchUpload":
        return "expected an unfinished upload, found that it was given up meanwhile; push again"
    if status >= 500 or code in ("SlowDown", "Throttling", "TooManyRequests", "429"):
        return f"expected {error.operation_name} to succeed, found the service busy or broken ({code}) each time; try again later"
    return f"expected {error.operation_name} to succeed, found {code} (HTTP {status}); check AWS_ENDPOINT_URL and the store's own log"
