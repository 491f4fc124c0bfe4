"""What went wrong in a training: named in the log, counted, and the end of the run where params say so."""

import logging
from collections.abc import Sequence

from unimed import outputs
from unimed.errors import InputError
from unimed.sections import Failures

log = logging.getLogger("train")


class Tally:
    """Counts the failures of a training by the names of their policies: those of all processes, of which each counts the same."""

    def __init__(self, policy: Failures):
        self.policy = policy
        self.counts = {"not_finite": 0, "unreadable": 0, "out_of_memory": 0}

    def not_finite(self, step: int, parts: dict[str, float], samples: Sequence[str]) -> None:
        """A step whose loss or gradient is no number. Raises FloatingPointError, or InputError where too many were skipped."""
        found = f"expected a finite loss and gradient at step {step}, found {parts} for the samples {', '.join(samples)}"
        if self.policy.not_finite == "stop":
            raise FloatingPointError(found)
        self._skip("not_finite", 1, f"{found}; the step is skipped")

    def unreadable(self, step: int, reasons: Sequence[str]) -> None:
        """Samples that a batch goes on without, if any, each with the reason. Raises InputError where too many were skipped."""
        if not reasons:
            return
        self._skip("unreadable", len(reasons), f"step {step} goes on without {'; '.join(reasons)}")

    def out_of_memory(self, step: int, error: BaseException, samples: Sequence[str]) -> None:
        """Name a step that did not fit; to be called in the handler of `error`, which is raised again where the run is to stop."""
        first = str(error).partition("\n")[0]
        found = f"expected step {step} to fit into memory, found {first} for the samples {', '.join(samples)}"
        if self.policy.out_of_memory == "stop":
            log.error("%s", found)
            raise error
        log.warning("%s; it is done in halves", found)

    def halved(self) -> None:
        """Count a step that a process did in halves; as it is made all the same, nothing bounds how many."""
        self.counts["out_of_memory"] += 1

    def told(self) -> dict[str, float]:
        """The counts of those failures that the run goes on after, for its log."""
        return {name: float(count) for name, count in self.counts.items() if getattr(self.policy, name) != "stop"}

    def _skip(self, name: str, count: int, found: str) -> None:
        self.counts[name] += count
        if outputs.is_leader():  # all processes hear of it
            log.warning("%s, %d so far", found, self.counts[name])
        if self.counts[name] > self.policy.most_skipped:
            bound = f"failures.most_skipped of {name} to be at most {self.policy.most_skipped}"
            raise InputError(f"params.yaml: expected {bound}, found {self.counts[name]}: {found}")
