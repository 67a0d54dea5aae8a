"""What the documents say, held against the program."""

import re
import shlex
from pathlib import Path
from typing import get_args

import pytest
import typer
import yaml
from pydantic import BaseModel
from typer.completion import get_completion_script

from brats_cli import __version__
from brats_cli.app import app
from brats_cli.core.data.labels import SCHEMES
from brats_cli.core.train.config import TrainConfig, load_config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GROUP = typer.main.get_command(app)


def code_blocks(text):
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [block for language, block in blocks if language in ("", "bash", "sh", "console")]


def brats_lines(text):
    """Every call of `brats` in shell text, as words, wherever it stands in a line."""
    joined = re.sub(r"\$\w+", "0", text.replace("\\\n", " "))  # a variable may stand for anything
    calls = []
    for line in joined.splitlines():
        for call in re.split(r"&&|\|\||[|;]|\b(?:do|then|else|try)\b|\$ ", line):
            words = shlex.split(call.split(" > ")[0], comments=True)
            if words and words[0] == "brats":
                calls.append(words[1:])
    return calls


def shown(words):
    return " ".join(["brats", *words])


IN_README = [words for block in code_blocks(README) for words in brats_lines(block)]
IN_DOCS = [
    words
    for path in sorted((ROOT / "docs").glob("*.md"))
    for block in code_blocks(path.read_text(encoding="utf-8"))
    for words in brats_lines(block)
]
IN_EXAMPLES = [
    words
    for path in sorted((ROOT / "examples").glob("*.sh"))
    for words in brats_lines(path.read_text(encoding="utf-8"))
]
IN_HELP = [
    shlex.split(line.removeprefix("Example: brats "))
    for command in GROUP.commands.values()
    for line in re.findall(r"Example: brats .*", command.help)
]


def options_of(command):
    return {name for param in command.params for name in (*param.opts, *param.secondary_opts)}


def check_call(words):
    """Parse a call as the program would, without running it."""
    switches = options_of(GROUP) | {"-h", "--help"}
    while words and words[0].startswith("-"):
        assert words[0] in switches, f"brats has no {words[0]}"
        words = words[1:]
    if not words:
        return
    name, *rest = words
    assert name in GROUP.commands, f"there is no command {name}"
    command = GROUP.commands[name]
    if {"-h", "--help"} & set(rest):
        return
    with command.make_context(name, rest, resilient_parsing=False):
        pass  # a wrong option, a wrong kind of value or a missing argument has raised


# Words that only this project used to use, and what the field says instead: fix, split, overfit,
# synthetic, override, one per case, resume, report.
DIALECT = re.compile(
    r"\b(mend(s|ed|ing)?|deals?|dealt|by heart|made[- ]up|for want of|goes before|is no number"
    r"|a (line|row) a (case|file)|one a (case|cpu|processor)|go on with|told)\b",
    re.IGNORECASE,
)


DOCUMENTS = ["README.md", "CHANGELOG.md", *sorted(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_use_the_words_of_the_field(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert [found.group() for found in DIALECT.finditer(text)] == []


@pytest.mark.parametrize("name", sorted(GROUP.commands))
def test_help_uses_the_words_of_the_field(name):
    command = GROUP.commands[name]
    texts = [command.help, *(param.help or "" for param in command.params)]
    assert [found.group() for text in texts for found in DIALECT.finditer(text)] == []


def test_there_are_lines_to_check():
    assert len(IN_README) > 15
    assert len(IN_EXAMPLES) > 4
    assert {words[0] for words in IN_HELP} == set(GROUP.commands)


@pytest.mark.parametrize("words", IN_README, ids=shown)
def test_the_readmes_commands_exist(words):
    check_call(words)


@pytest.mark.parametrize("words", IN_DOCS, ids=shown)
def test_the_commands_of_docs_exist(words):
    check_call(words)


@pytest.mark.parametrize("words", IN_EXAMPLES, ids=shown)
def test_the_examples_commands_exist(words):
    check_call(words)


@pytest.mark.parametrize("words", IN_HELP, ids=shown)
def test_the_helps_commands_exist(words):
    check_call(words)


def test_a_command_that_does_not_exist_would_be_found():
    for wrong in (["show", "case"], ["split", "data", "--tta"], ["mesh", "a", "--space", "up"]):
        with pytest.raises(Exception, match=r"no command|[Nn]o such option|'up' is not one of"):
            check_call(wrong)


def test_the_readme_shows_every_command():
    assert set(GROUP.commands) == {words[0] for words in IN_README if words[0][0] != "-"}


def test_the_readme_has_the_lines_of_the_mission():
    lines = [shown(words) for words in IN_README]
    assert "brats split data/" in lines
    assert "brats train --epochs 100 --gpu 0" in lines
    assert "brats predict case.nii.gz -o seg.nii.gz" in lines
    assert "brats mesh seg.nii.gz --region WT" in lines


def test_the_readme_names_every_label_scheme():
    assert [name for name in SCHEMES if f"`{name}`" not in README] == []


@pytest.mark.parametrize("heading", ["Which data"])
def test_the_sections_that_errors_point_to_exist(heading):
    assert re.search(rf"^#+ {heading}$", README, re.MULTILINE)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name):
    document = ROOT / name
    text = document.read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!http)([^)#]*)(?:#[^)]*)?\)", text)
    assert [target for target in targets if not (document.parent / target).exists()] == []


def test_the_changelog_has_this_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## \[{re.escape(__version__)}\]", text, re.MULTILINE)


def test_the_package_and_its_metadata_have_one_version():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'\nversion = "{__version__}"\n' in text


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completions_are_what_brats_makes(shell):
    script = get_completion_script(prog_name="brats", complete_var="_BRATS_COMPLETE", shell=shell)
    assert (ROOT / f"completions/brats.{shell}").read_text(encoding="utf-8") == script + "\n"


def keys_of(model: type[BaseModel], before=""):
    for name, field in model.model_fields.items():
        # Of the networks there are, the example shows the settings of brats' own.
        kind = next(iter(get_args(field.annotation)), None) if name == "network" else None
        kind = kind or field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from keys_of(kind, f"{before}{name}.")
        else:
            yield before + name


def keys_in(settings, before=""):
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from keys_in(value, f"{before}{name}.")
        else:
            yield before + name


def test_the_example_config_is_the_default_and_complete():
    path = ROOT / "examples/train.yaml"
    assert load_config(path).model_dump() == TrainConfig().model_dump()
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert sorted(keys_in(settings)) == sorted(keys_of(TrainConfig))


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda p: p.name)
def test_every_example_config_loads(path):
    assert isinstance(load_config(path), TrainConfig)
