"""Writes the references beside this file from the code: `make docs`.

commands.md is made of what `brats COMMAND --help` is made of, python.md of docstrings.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
import typing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import typer

import brats_cli
from brats_cli.app import app

GROUP = typer.main.get_command(app)

KINDS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}
"""What stands for the value of an option that names none."""


def table(*heading: str, rows: Iterable[Iterable[str]]) -> str:
    """A table of Markdown; a line break or a `|` in a cell would end it."""
    cells = [[" ".join(cell.split()).replace("|", r"\|") for cell in row] for row in rows]
    lines = [heading, ["---"] * len(heading), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def code(words: str, language: str = "") -> str:
    return f"```{language}\n{words}\n```"


# The commands


def commands() -> str:
    """The reference of the command line."""
    intro = (
        "# Commands\n\nMade from the help texts by `make docs`. `brats COMMAND --help` prints the "
        "same; [tutorial.md](tutorial.md) shows the commands at work.\n\n"
        "Exit status: 0 done, 1 a bug in brats, 2 wrong usage, 3 a problem with your data, file or "
        "setting, 130 Ctrl-C, 143 SIGTERM. Results go to standard output, messages to standard "
        "error."
    )
    links = "\n".join(f"- [{name}](#{name}): {summary(name)}" for name in GROUP.commands)
    options = table("option", "meaning", rows=options_of(GROUP))
    before = f"These stand before the command, as in `brats -q check data/`:\n\n{options}"
    return "\n\n".join([intro, links, before, *map(command, GROUP.commands)]) + "\n"


def summary(name: str) -> str:
    return " ".join(GROUP.commands[name].help.split("\n\n")[0].split())


def command(name: str) -> str:
    """The section of a command."""
    made = GROUP.commands[name]
    examples = re.findall(r"^Example: (.*)$", made.help, re.MULTILINE)
    text = re.sub(r"\n*^Example: .*$", "", made.help, flags=re.MULTILINE)
    arguments = [param for param in made.params if param.param_type_name == "argument"]
    usage = " ".join(["brats", name, *map(in_usage, arguments), "[OPTIONS]"])
    rows = [*map(argument, arguments), *options_of(made)]
    return "\n\n".join(
        [
            f"## {name}",
            f"`{usage}`",
            text,
            code("\n".join(examples), "bash"),
            table("argument, option", "meaning", rows=rows),
        ]
    )


def in_usage(param: typing.Any) -> str:
    word = param.metavar + ("..." if param.nargs != 1 else "")
    return word if param.required else f"[{word}]"


def argument(param: typing.Any) -> tuple[str, str]:
    return f"`{in_usage(param).strip('[]')}`", param.help + default_of(param)


def options_of(made: typing.Any) -> Iterator[tuple[str, str]]:
    hints = typing.get_type_hints(made.callback)
    for param in made.params:
        if param.param_type_name == "option" and not param.hidden:
            names = ", ".join(f"`{name}`" for name in [*param.opts, *param.secondary_opts])
            value = "" if param.is_flag else f" `{value_of(param, hints[param.name])}`"
            yield names + value, param.help + default_of(param) + repeatable(param)


def value_of(param: typing.Any, kind: object) -> str:
    """What stands for the value of an option: its metavar, its choices or its kind."""
    kinds = [each for each in typing.get_args(kind) if each is not type(None)] or [kind]
    choices = [word for each in [kind, *kinds] for word in typing.get_args(each)]
    words = [word for word in choices if isinstance(word, str)]
    return param.metavar or "|".join(words) or KINDS[typing.cast(type, kinds[0])]


def default_of(param: typing.Any) -> str:
    """Said where the help does not say it itself."""
    if param.default in (None, False, ()) or "default" in param.help.lower():
        return ""
    return f" Default: `{param.opts[0] if param.default is True else param.default}`."


def repeatable(param: typing.Any) -> str:
    said = re.search(r"repeat", param.help, re.IGNORECASE)
    return " Can be repeated." if param.multiple and not said else ""


# The Python API


def python() -> str:
    """The reference of `brats_cli`."""
    public = {name: getattr(brats_cli, name) for name in brats_cli.__all__ if name[0] != "_"}
    functions = {name: each for name, each in public.items() if inspect.isfunction(each)}
    results: dict[str, type] = {}
    for each in functions.values():
        returned = typing.get_type_hints(each)["return"]
        results |= {kind.__name__: kind for kind in classes_in(returned)}
    results |= {name: each for name, each in public.items() if inspect.isclass(each)}
    intro = (
        "# Python API\n\nMade from the docstrings by `make docs`. Every command is a function of "
        "`brats_cli` with the command's parameters. The functions print nothing. They raise "
        "`BratsError`, whose text says what is wrong and whose `hint` what to do; "
        "`train`, `predict` and `demo` are generators.\n\n"
        + code('import brats_cli\n\nreport = brats_cli.evaluate("predictions/", "data/")', "python")
    )
    listed = ", ".join(f"[{name}](#{name})" for name in functions)
    sections = [function(name, each) for name, each in functions.items()]
    kinds = [result(kind) for _, kind in sorted(results.items())]
    after = "## Results, events and errors"
    return "\n\n".join([intro, f"Functions: {listed}", *sections, after, *kinds]) + "\n"


def classes_in(kind: object) -> Iterator[type]:
    """The classes of brats among what a type is made of."""
    if inspect.isclass(kind) and kind.__module__.startswith("brats_cli"):
        yield kind
    for part in typing.get_args(kind):
        yield from classes_in(part)


def function(name: str, each: Callable[..., object]) -> str:
    text, parts = docstring(each)
    signature = inspect.signature(each)
    said = dict(parts["Args"])
    rows = [
        (f"`{key}`", f"`{param.annotation}`", default_in(param), said.get(key, ""))
        for key, param in signature.parameters.items()
    ]
    end = [f"**Yields** {parts['Yields']}"] if parts["Yields"] else []
    end += [f"**Returns** `{signature.return_annotation}`. {parts['Returns'] or ''}".strip()]
    raised = [f"- `{error}`: {why}" for error, why in parts["Raises"]]
    end += ["**Raises**\n\n" + "\n".join(raised)] if raised else []
    heading = ("parameter", "type", "default", "meaning")
    return "\n\n".join([f"## {name}", text, table(*heading, rows=rows), *end])


def default_in(param: inspect.Parameter) -> str:
    if param.default is inspect.Parameter.empty:
        return "required"
    return "" if callable(param.default) else f"`{param.default!r}`"


def result(kind: type) -> str:
    """A class: its attributes, and the first line of what is said of each method."""
    text, parts = docstring(kind)
    said = dict(parts["Attributes"])
    fields = inspect.get_annotations(kind) if dataclasses.is_dataclass(kind) else {}
    rows = [(f"`{name}`", f"`{each}`", said.get(name, "")) for name, each in fields.items()]
    rows += [
        (f"`{name}{'' if isinstance(each, property) else '()'}`", type_of(each), first_line(each))
        for name, each in vars(kind).items()
        if name[0] != "_" and (inspect.isfunction(each) or isinstance(each, property))
    ]
    attributes = [table("name", "type", "meaning", rows=rows)] if rows else []
    return "\n\n".join([f"### {kind.__name__}", text, *attributes])


def type_of(each: typing.Any) -> str:
    """The type of a property, or of what a method returns."""
    each = each.fget if isinstance(each, property) else each
    kind = inspect.signature(each).return_annotation
    return "" if kind == "None" else f"`{kind}`"


def first_line(each: object) -> str:
    return (inspect.getdoc(each) or "").splitlines()[0]


def docstring(each: object) -> tuple[str, dict[str, typing.Any]]:
    """The text of a docstring in Google's form, and its parts by name.

    Args, Attributes and Raises are pairs of a name and its text; Yields and Returns are text.
    """
    heads = ("Args", "Attributes", "Raises", "Yields", "Returns")
    text, *rest = re.split(rf"^({'|'.join(heads)}):\n", inspect.getdoc(each) or "", flags=re.M)
    parts: dict[str, typing.Any] = {
        head: textwrap.dedent(words).strip()
        for head, words in zip(rest[::2], rest[1::2], strict=True)
    }
    for name in ("Args", "Attributes", "Raises"):
        entries = re.findall(r"^(\w+): (.*(?:\n +.*)*)", parts.get(name, ""), re.MULTILINE)
        parts[name] = [(key, " ".join(words.split())) for key, words in entries]
    for name in ("Yields", "Returns"):
        parts[name] = " ".join(parts.get(name, "").split())
    return text.strip(), parts


PAGES = {"commands.md": commands, "python.md": python}

if __name__ == "__main__":
    for name, page in PAGES.items():
        Path(__file__).with_name(name).write_text(page(), encoding="utf-8")
