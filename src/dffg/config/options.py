"""What an option is: a field with its help text and choices, checked when the configuration is made."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from dffg.errors import InputError


def option(default: Any, help: str, choices: tuple[str, ...] = (), flag: str = "") -> Any:
    """Declare a field together with its help text, so that no second place has to know it.

    `flag` names the command line option where it is not the field's own name.
    """
    return field(default=default, metadata={"help": help, "choices": choices, "flag": flag})


def require(condition: bool, message: str) -> None:
    """Raise InputError where a value does not hold."""
    if not condition:
        raise InputError(message)


def check_most(config: Any, most: dict[str, int]) -> None:
    """Raise InputError where an option is larger than anyone can mean."""
    for name, limit in most.items():
        value = getattr(config, name)
        require(value is None or value <= limit, f"{name} is {value}; it must be at most {limit}.")


def fill(config: Any, name: str, value: Any) -> None:
    """Give an option that was left out its default."""
    if getattr(config, name) is None:
        object.__setattr__(config, name, value)


def check_choices(config: Any, *names: str) -> None:
    """Of the named options, or of all; what is still open may be None."""
    for name in names or config.__dataclass_fields__:
        known, value = config.__dataclass_fields__[name], getattr(config, name)
        choices = known.metadata.get("choices", ())
        is_open = value is None and known.default is None
        require(not choices or is_open or value in choices, f"{name} is {value!r}; choose one of {', '.join(choices)}.")
