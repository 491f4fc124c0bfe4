"""What every program of the project sets before it imports anything heavy: no telemetry, no downloads, quiet libraries."""

import logging
import os
import resource

DEFAULTS = {
    "AWS_EC2_METADATA_DISABLED": "true",
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # transformers' bars, too
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "MLFLOW_CONFIGURE_LOGGING": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "true",
    "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "false",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Environment variables that libraries read when they are imported; a value that the user has set wins."""

CHATTY = ("alembic", "mlflow", "httpx", "great_expectations", "accelerate", "botocore", "DeepSpeed", "filelock", "datasets")
"""Loggers whose news is not ours; their warnings still show."""


def settle() -> None:
    """Set the defaults above where the user has set nothing."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


def allow_open_files() -> None:
    """Let this process hold as many files open as its system allows: a batch that a worker has read is one for each of its tensors.

    Shells commonly allow 1,024, where a batch in eighty portions has more; its loader would wait for ever.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def start_logging() -> None:
    """One line per event on standard error: time, level, who, what."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s", datefmt="%H:%M:%S", force=True)
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    # A filter, because DeepSpeed sets its logger's level when it is imported.
    logging.getLogger("DeepSpeed").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a message of DeepSpeed's says more than that this machine has no accelerator."""
    return not record.getMessage().startswith("Setting accelerator to CPU")
