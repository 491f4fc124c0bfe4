"""The end of every run on Kubeflow, however it went: a page that says how it ended, why, and what the store holds of each stage."""

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

from pipelines import artifacts
from unimed import environment, pages
from unimed.errors import BAD_INPUT, InputError
from unimed.store import Store

TEMPLATE = Path(__file__).with_name("last_report.html.j2")
log = logging.getLogger("report")


def read(status: dict[str, Any]) -> tuple[str, str]:
    """How a run ended and why, in KFP's words; the reason is empty after success."""
    error = status.get("error") or {}
    return str(status.get("state", "UNKNOWN")), str(error.get("message", "")) if isinstance(error, dict) else str(error)


def stages(keys: dict[str, str], address: str, run: str) -> list[dict[str, str]]:
    """What the store holds of each stage under its recipe key: made by this run, by an earlier one, or nothing."""
    store = Store(address)
    rows = []
    for name, key in keys.items():
        record = store.record(name, key)
        made = "not made" if record is None else "made" if record.get("run") == run else "kept from an earlier run"
        size = sum(out["size"] for out in record["lock"]["outs"]) if record else 0
        shown = f"{size / 2**20:,.1f} MiB" if size >= 2**20 else f"{size / 2**10:,.1f} KiB"
        rows.append({"name": name, "key": key, "made": made, "size": shown if record else ""})
    return rows


def write(page: Path, status: dict[str, Any], run: str, orders: dict[str, Any]) -> str:
    """Write the page; returns how the run ended. A store that does not answer is said on the page and hides nothing else."""
    state, reason = read(status)
    rows: list[dict[str, str]] = []
    trouble = "" if orders["store"] else "The project has no store, so nothing is known of single stages here."
    try:
        rows = stages(orders["keys"], orders["store"], run) if orders["store"] else []
    except InputError as error:
        trouble = str(error)
    values = {"state": state, "reason": reason, "run": run, "rows": rows, "trouble": trouble, "revision": orders["revision"]}
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(pages.render(TEMPLATE, **values))
    return f"{state}: {reason}" if reason else state


def main() -> None:
    """Write the report and tell KFP of it."""
    environment.settle()
    environment.start_logging()
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--orders", type=json.loads, required=True, help="store, recipe keys and git revision, as JSON")
    parser.add_argument("--status", type=json.loads, required=True, help="KFP's word on how it ended, as JSON")
    parser.add_argument("--executor-input", type=json.loads, required=True, help="KFP's word on inputs and outputs, as JSON")
    parser.add_argument("--page", type=Path, required=True, help="where the page goes")
    given = parser.parse_args(sys.argv[1:])
    run = artifacts.run_id(given.executor_input)
    try:
        log.info("run %s ended: %s", run, write(given.page, given.status, run, given.orders))
        artifacts.report(given.executor_input, {"page": {"state": read(given.status)[0]}}, {})
    except InputError as error:
        log.error("%s", error)
        sys.exit(BAD_INPUT)


if __name__ == "__main__":
    main()
