"""What a promise asks of a column, as a predicate of SQL, which is fast, and as an expectation of Great Expectations, which judges."""

from dataclasses import dataclass
from typing import Any, Protocol

Value = str | int | bool


class Check(Protocol):
    """A condition on the values of a column. A test holds its two forms equal on random values."""

    @property
    def column(self) -> str:
        """The column of the facts that the condition is on."""
        ...

    def broken(self, table: str) -> str:
        """The predicate of SQL that is true of the rows of a table that break the condition."""
        ...

    def expectation(self) -> tuple[str, dict[str, Any]]:
        """Name and arguments of a class of great_expectations.expectations; arguments are whatever that class takes."""
        ...


def literal(value: Value) -> str:
    """A value as SQL writes it."""
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else str(value)


@dataclass(frozen=True, slots=True)
class Unique:
    """No value occurs twice; every row of a value that does breaks it."""

    column: str

    def broken(self, table: str) -> str:
        """By the table of duplicates that facts.py makes."""
        return f"{self.column} IN (SELECT {self.column} FROM duplicate_{table})"

    def expectation(self) -> tuple[str, dict[str, Any]]:
        """The same for Great Expectations."""
        return "ExpectColumnValuesToBeUnique", {"column": self.column}


@dataclass(frozen=True, slots=True)
class OneOf:
    """Every value is one of these."""

    column: str
    values: tuple[Value, ...]

    def broken(self, table: str) -> str:
        """By a list of literals."""
        return f"{self.column} NOT IN ({', '.join(map(literal, self.values))})"

    def expectation(self) -> tuple[str, dict[str, Any]]:
        """The same for Great Expectations."""
        return "ExpectColumnValuesToBeInSet", {"column": self.column, "value_set": list(self.values)}


@dataclass(frozen=True, slots=True)
class NoneOf:
    """No value is one of these."""

    column: str
    values: tuple[Value, ...]

    def broken(self, table: str) -> str:
        """By a list of literals."""
        return f"{self.column} IN ({', '.join(map(literal, self.values))})"

    def expectation(self) -> tuple[str, dict[str, Any]]:
        """The same for Great Expectations."""
        return "ExpectColumnValuesToNotBeInSet", {"column": self.column, "value_set": list(self.values)}


@dataclass(frozen=True, slots=True)
class Between:
    """Every value is at least `low` and at most `high`; None sets no bound."""

    column: str
    low: float | None = None
    high: float | None = None

    def broken(self, table: str) -> str:
        """By one comparison for each bound."""
        bounds = ((f"{self.column} < {self.low}", self.low), (f"{self.column} > {self.high}", self.high))
        return "(" + " OR ".join(test for test, bound in bounds if bound is not None) + ")"

    def expectation(self) -> tuple[str, dict[str, Any]]:
        """The same for Great Expectations."""
        return "ExpectColumnValuesToBeBetween", {"column": self.column, "min_value": self.low, "max_value": self.high}


@dataclass(frozen=True, slots=True)
class FreeOf:
    """No text holds a match of a pattern, which must mean the same to RE2 and to Python: no shorthand for classes of characters."""

    column: str
    pattern: str

    def broken(self, table: str) -> str:
        """By a search for the pattern."""
        return f"regexp_matches({self.column}, {literal(self.pattern)})"

    def expectation(self) -> tuple[str, dict[str, Any]]:
        """The same for Great Expectations."""
        return "ExpectColumnValuesToNotMatchRegex", {"column": self.column, "regex": self.pattern}
