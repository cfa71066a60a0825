"""What a test knows of a value and its type does not say; a test fails where it is wrong."""

from typing import TypeVar

T = TypeVar("T")


def present(value: T | None) -> T:
    """The value, which is not None."""
    assert value is not None
    return value


def as_a(kind: type[T], value: object) -> T:
    """The value, which is of this class."""
    assert isinstance(value, kind)
    return value
