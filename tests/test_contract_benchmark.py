"""The benchmark of the contract runs at a small size, so that it cannot rot between two runs at the full one."""

import pytest

from benchmarks import contract


@pytest.mark.slow
def test_the_seconds_of_each_check_are_printed(monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", "replaced by the benchmark, put back by this test")
    contract.main(masks=70_000)
    rows = dict(
        line.strip("| ").split(" | ", 1) for line in capsys.readouterr().out.splitlines() if line.startswith("| ") and " | |" not in line
    )
    assert list(rows) == [
        "table checks: joined",
        "table checks: offenders found",
        "table checks: Great Expectations, with its import",
        "table checks: what depends on them",
        "tables written",
        "table checks in all",
        "most memory",
    ]
