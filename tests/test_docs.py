"""What the documents say, held against the program."""

import importlib.util
import re
import shlex
from pathlib import Path
from typing import get_args

import pytest
import typer
import yaml
from pydantic import BaseModel
from test_shape import EDGES

import brats_cli
from brats_cli.app import app
from brats_cli.core.data.labels import SCHEMES
from brats_cli.core.train.config import TrainConfig, load_config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GROUP = typer.main.get_command(app)


def program(name):
    """A program of the checkout as a module."""
    spec = importlib.util.spec_from_file_location(Path(name).parent.name, ROOT / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def code_blocks(text):
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [block for language, block in blocks if language in ("", "bash", "sh", "console")]


def brats_lines(text):
    """Every call of `brats` in shell text, as words, wherever it stands in a line."""
    joined = text.replace("\\\n", " ").replace('"$@"', "")  # what else a script is given
    joined = re.sub(r"\$\w+", "0", joined)  # a variable may stand for anything
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


DOCUMENTS = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    *sorted(f"docs/{p.name}" for p in ROOT.glob("docs/*.md")),
]


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


def test_the_changelogs_newest_release_is_this_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    releases = [heading for heading in headings if heading != "[Unreleased]"]
    assert headings in (releases, ["[Unreleased]", *releases])
    day = r"\d{4}-\d{2}-\d{2}"
    assert re.fullmatch(rf"\[{re.escape(brats_cli.__version__)}\] - {day}", releases[0])


def test_the_package_takes_its_version_from_the_code():
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert not re.search(r"^version = \"", settings, re.MULTILINE)
    assert 'version = {attr = "brats_cli.__version__"}' in settings


def test_the_citation_has_what_its_format_asks_for():
    # The required keys of CFF 1.2.0, and an author that is an entity: it has a name alone.
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["authors"] == [{"name": "The brats developers"}]
    assert citation["title"] == "brats"
    assert citation["message"]
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert citation["version"] == brats_cli.__version__
    assert f"## [{citation['version']}] - {citation['date-released']}\n" in text


def test_the_rooms_that_contributors_read_of_are_those_of_the_core():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| [^|]* \| ([^|]*)\|$", text, re.MULTILINE)
    assert {room: set(re.findall(r"`(\w+)`", edges)) for room, edges in rows} == EDGES


def test_the_make_targets_that_contributors_read_of_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    targets = re.findall(r"^make ([\w-]+)", text, re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert len(targets) == 7
    assert [name for name in targets if f"\n{name}: " not in makefile] == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completions_are_what_brats_makes(shell):
    made = program("completions/make.py").script(shell)
    found = (ROOT / f"completions/brats.{shell}").read_text(encoding="utf-8")
    assert found == made, "run `make completions`"


@pytest.mark.parametrize("name", ["commands.md", "python.md"])
def test_the_references_are_what_the_code_says(name):
    made = program("docs/make.py").PAGES[name]()
    found = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert found.splitlines() == made.splitlines(), "run `make docs`"


def test_the_references_have_a_meaning_for_every_parameter():
    for name, page in program("docs/make.py").PAGES.items():
        functions = page().partition("\n## Results")[0]
        assert [line for line in functions.splitlines() if line.endswith("|  |")] == [], name


def test_the_reference_of_a_command_says_what_its_option_is():
    page = program("docs/make.py").commands()
    assert "`brats mesh SEG... [OPTIONS]`" in page
    assert "\n| `--space` `AXES` | Axes of the mesh" in page
    assert "(lps). Default: `ras`. |" in page
    assert "\n| `--group`, `--no-group` | Keep all visits" in page
    assert "--small" not in page  # hidden: for tests


def test_the_reference_of_python_has_every_public_name():
    headings = set(re.findall(r"^##+ (\w+)$", program("docs/make.py").python(), re.MULTILINE))
    assert {name for name in brats_cli.__all__ if name != "__version__"} <= headings


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


def test_the_files_that_brats_writes_are_described():
    sources = [path.read_text(encoding="utf-8") for path in ROOT.glob("src/brats_cli/**/*.py")]
    formats = {name for text in sources for name in re.findall(r'"(brats-[a-z]+/\d+)"', text)}
    inside = {"brats-preparation/1", "brats-recipe/1"}  # parts of a checkpoint
    files = (ROOT / "docs/files.md").read_text(encoding="utf-8")
    assert len(formats) > 8
    assert {name for name in formats - inside if name not in files} == set()
