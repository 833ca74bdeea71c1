"""Recipes: the options of a command, written down in a YAML file.

A key is the name of an option without its dashes, or `model`. A value is read exactly as the command line reads it, so
that `bounds: -130:30` is what it is there; a list is what the command line writes with commas. Which options there are,
and what they take, is asked of the commands themselves. Flags say how a command is run and what it may do (`--trust`,
`--force`), and stay on the command line.

YAML is only composed, never constructed: a file can name no object to be made, and every value keeps its line.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dffg.config import RECIPES
from dffg.errors import InputError

if TYPE_CHECKING:
    from yaml import Node

_NAME = "recipe"
# Say where a command runs, not what it does.
_WHERE = frozenset({"ray", "workers"})
_PLACES = "dffg.cli.recipe_file.places"
_MOST_BYTES = 10**6
_TAG = "tag:yaml.org,2002:"
_TAGS = frozenset(f"{_TAG}{kind}" for kind in ("str", "int", "float", "bool", "null", "timestamp", "seq", "map"))


def recipe_option(names: tuple[str, ...], help: str) -> Callable[[Any], Any]:
    """`--recipe`, a file whose values the command line overrides, or one of `names`, which the command is given.

    It may be there several times; what is later overrides.
    """

    def take(context: click.Context, _: click.Parameter, given: tuple[str, ...]) -> str | None:
        return _take(context, given, names)

    metavar = "|".join(("FILE", *names))
    return click.option("--recipe", _NAME, metavar=metavar, multiple=True, is_eager=True, callback=take, help=help)


def recipe_parameters(command: click.Command) -> Iterator[tuple[str, click.Parameter]]:
    """What a recipe can say to a command, by key: everything but flags and where it runs."""
    for parameter in command.params:
        if not getattr(parameter, "is_flag", False) and parameter.name not in _WHERE:
            yield max(parameter.opts, key=len).lstrip("-"), parameter


def read(path: Path, known: Mapping[str, click.Parameter]) -> dict[str, tuple[str, str]]:
    """By the name of its parameter, the text of every value in a file, and where it stands.

    Raises `InputError` with the line for what the command line would not take, and with the nearest name for a key
    that is none. Values that are left empty, or null, are left out.
    """
    root = compose(path)
    return read_pairs(path, [] if root is None else pairs(path, root), known)


def read_pairs(
    path: Path, content: list[tuple[Node, Node]], known: Mapping[str, click.Parameter]
) -> dict[str, tuple[str, str]]:
    """As `read`, of a part of a file."""
    found: dict[str, tuple[str, str]] = {}
    for key_node, value_node in content:
        place = place_of(path, key_node)
        key = str(key_node.value).replace("_", "-")
        if key not in known:
            raise InputError(f"{place}: {_unknown(key, known)}")
        name = str(known[key].name)
        if name in found:
            raise InputError(f"{place}: {key} stands here a second time; keep one.")
        found[name] = (_checked(known[key], value_node, f"{place}: {key}"), place)
    return {name: entry for name, entry in found.items() if entry[0]}


def dump(values: Mapping[str, Any]) -> str:
    """Options as a recipe."""
    import yaml

    plain = {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}
    return str(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))


def with_place(error: InputError, said: str) -> InputError:
    """What is said of an error, with the line of the recipe where the option stands that it is about."""
    context = click.get_current_context()
    for name, place in context.meta.get(_PLACES, {}).items():
        from_recipe = context.get_parameter_source(name) == click.core.ParameterSource.DEFAULT_MAP
        if from_recipe and str(error).startswith(f"{name} is "):
            return InputError(f"{place}: {said}")
    return InputError(said)


def _take(context: click.Context, given: tuple[str, ...], names: tuple[str, ...]) -> str | None:
    """Make the values of files the defaults of this command; the answer is the name that is given last."""
    chosen: str | None = None
    for value in given:
        if value in names:
            chosen = value
            continue
        if not Path(value).exists():
            raise InputError(f"there is no recipe {value!r}; give {' or '.join(('a YAML file', *names))}.")
        found = read(Path(value), _known(context))
        context.meta.setdefault(_PLACES, {}).update({name: place for name, (_, place) in found.items()})
        chosen = found.pop(_NAME, (chosen, ""))[0]
        context.default_map = {**(context.default_map or {}), **{name: text for name, (text, _) in found.items()}}
    return chosen


def _known(context: click.Context) -> dict[str, click.Parameter]:
    """Parameters of this command, and of all others that take recipes, so that one recipe serves them all."""
    root = context.find_root().command
    commands = [*getattr(root, "commands", {}).values(), context.command]
    taking = [command for command in commands if any(parameter.name == _NAME for parameter in command.params)]
    return dict(pair for command in taking for pair in recipe_parameters(command))


def compose(path: Path) -> Node | None:
    """The nodes of a file; None where there are none. Raises `InputError` for what is no YAML, or too much."""
    import yaml

    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InputError(f"{path} is larger than {_MOST_BYTES // 10**6} MB; split it.")
        root: Node | None = yaml.compose(path.read_bytes(), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"{path}{line}: this is not YAML: {error.problem}.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; give a YAML file.") from error
    except (yaml.YAMLError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else "it is not text"
        raise InputError(f"{path} is not a YAML file: {reason}.") from error
    return root


def pairs(path: Path, node: Node) -> list[tuple[Node, Node]]:
    """Keys and values of a mapping, whose tags are harmless."""
    import yaml

    if not isinstance(node, yaml.MappingNode):
        raise InputError(f"{place_of(path, node)}: a recipe consists of lines `option: value`.")
    for part in (part for pair in node.value for part in pair):
        _check_tag(path, part)
    return list(node.value)


def entries(path: Path, node: Node) -> list[Node]:
    """What a list holds."""
    import yaml

    if not isinstance(node, yaml.SequenceNode):
        raise InputError(f"{place_of(path, node)}: this is not a list; begin every entry with a dash.")
    for part in node.value:
        _check_tag(path, part)
    return list(node.value)


def _check_tag(path: Path, node: Node) -> None:
    if node.tag not in _TAGS:
        raise InputError(f"{place_of(path, node)}: the tag {node.tag.replace(_TAG, '!!')} is not allowed in a recipe.")


def place_of(path: Path, node: Node) -> str:
    """File and line, for an error."""
    return f"{path}, line {node.start_mark.line + 1}"


def _checked(parameter: click.Parameter, node: Node, label: str) -> str:
    """The text of a value that the command line would take; empty where there is none."""
    text = "" if node.tag == f"{_TAG}null" else _text(node)
    if text is None:
        raise InputError(f"{label} is not one value, nor a list of values.")
    if parameter.name == _NAME and text and text not in RECIPES:
        raise InputError(f"{label} is {text!r}; choose one of {', '.join(RECIPES)}.")
    try:
        if text:
            parameter.type.convert(text, parameter, None)
    except click.BadParameter as error:
        raise InputError(f"{label}: {error.message}") from error
    return text


def _text(node: Node) -> str | None:
    """A scalar as it is written; scalars of a list joined as the command line does it."""
    import yaml

    if isinstance(node, yaml.ScalarNode):
        return str(node.value)
    if isinstance(node, yaml.SequenceNode) and all(isinstance(part, yaml.ScalarNode) for part in node.value):
        return ",".join(part.value for part in node.value)
    return None


def _unknown(key: str, known: Mapping[str, click.Parameter]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"it can have {', '.join(sorted(known))}."
    return f"a recipe has no option {key!r}; {hint}"
