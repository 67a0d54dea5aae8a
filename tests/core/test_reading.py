import os

import pytest

from brats_cli.core.data.splits import Split
from brats_cli.core.errors import BratsError, UnreadableFileError
from brats_cli.core.reading import (
    LimitError,
    parse_json,
    parse_yaml,
    read_json,
    read_table,
    read_text,
    real_path,
    sha256_of,
)
from brats_cli.core.train.config import load_config

ROWS = [{"ID": "a", "Größe": "groß"}, {"ID": "b", "Größe": ""}]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1", "cp1252"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("line", ["\n", "\r\n"])
def test_tables_of_excel_in_any_encoding(tmp_path, encoding, separator, line):
    lines = ["ID,Größe", "a,groß", "b,"]
    text = line.join(each.replace(",", separator) for each in lines)
    (tmp_path / "t.csv").write_bytes(text.encode(encoding))
    assert read_table(tmp_path / "t.csv") == ROWS


@pytest.mark.parametrize(
    "text",
    [
        "ID,Größe\na,groß,\nb,,\n",  # surplus fields
        " ID ,Größe,\na,groß,x\nb\n",  # a column without a name; missing fields
        "\n\nID,Größe\n\na,groß\n,\nb,\n",  # empty lines
        'ID,Größe\n"a",groß\nb,""',
    ],
)
def test_rows_with_more_or_fewer_fields_than_names(tmp_path, text):
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    assert read_table(tmp_path / "t.csv") == ROWS


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a,b\n1,\0\n", "it is not text"),
        (b"\xff\xfea", "it is not text"),
        (b"a,b\n" + b"x" * 200_000 + b",1\n", "it is not a readable table"),
    ],
)
def test_what_is_no_table_is_named(tmp_path, content, reason):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UnreadableFileError, match=rf"t.csv: {reason}"):
        read_table(tmp_path / "t.csv")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    reasons = {
        "pipe": "it is not a regular file",
        "zero": "it is not a regular file",
        "loop": "Too many levels of symbolic links",
        ".": "it is a folder",
        "missing": "there is no such file",
        "x" * 300: "File name too long",
        "nul\0": "embedded null",  # byte or character: Pythons differ
    }
    for name, reason in reasons.items():
        with pytest.raises(UnreadableFileError, match=reason):
            read_text(tmp_path / name)


@pytest.mark.parametrize(
    "text",
    [
        "a: 2001-99-99", "a: 0x_", "a: !!int ''", "a: !!float ''", "a: !!timestamp x",
        "a: !!bool x", "? [a]: b", "? {a: b}\n: c", "a: *b", "a: !!python/object:x {}", "\x00",
        "[" * 2000, "a: &a [*a", "- a\nb: c", "a: !!omap 3",
    ],
)  # fmt: skip
def test_whatever_yaml_stumbles_on_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"\S"):
        parse_yaml(text)


def test_a_checksum_is_that_of_the_standard(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1.
    assert sha256_of(tmp_path / "a") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
    with pytest.raises(UnreadableFileError, match=r"cannot read .*gone: No such file"):
        sha256_of(tmp_path / "gone")


# --- bounds ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        ",".join(f"c{n}" for n in range(10_000)) + "\n" + "a\n" * 401,  # 4 million cells in 60 kB
        "ID\n" + "a\n" * 2_000_000,
        "ID," + "," * 2_000_000,
    ],
)
def test_a_table_of_millions_of_cells_is_refused(tmp_path, text):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UnreadableFileError, match="it holds too many values"):
        read_table(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (parse_json, "[" + "[]," * 1_000_001 + "0]"),
        (parse_yaml, "a: 1\n" * 250_001),
        (parse_yaml, "\n" * 500_001),
        (parse_yaml, "a: " + "x" * (1 << 24)),
    ],
)
def test_a_text_of_very_many_values_is_refused_before_it_is_parsed(monkeypatch, parse, text):
    monkeypatch.setattr("json.loads", None)
    monkeypatch.setattr("yaml.safe_load", None)
    many = r"it holds too many values, more than (2,000,000|500,000)|it has 16,777,219 characters"
    with pytest.raises(LimitError, match=many):
        parse(text)


def test_settings_splits_and_json_that_are_too_long_say_so(tmp_path):
    """Rather than that they are no YAML, which would send their owner looking for a mistake."""
    (tmp_path / "x.yaml").write_text("a: 1\n" * 250_001)
    (tmp_path / "x.json").write_text("[" + "[]," * 1_000_001 + "0]")
    for read, name in ((load_config, "yaml"), (Split.load, "yaml"), (read_json, "json")):
        with pytest.raises(BratsError, match="it holds too many values, more than"):
            read(tmp_path / f"x.{name}")


def test_only_what_separates_the_cells_of_a_table_is_counted(tmp_path):
    """Decimal commas, and those of a report in words, do not."""
    rows = "".join(f"P{n}\t0,5 and{',' * 20}\n" for n in range(100_000))
    (tmp_path / "t.tsv").write_text("ID\tvalue\n" + rows)
    assert len(read_table(tmp_path / "t.tsv")) == 100_000


def test_links_that_lead_to_each_other_have_a_real_path(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "c").symlink_to("d")
    assert real_path(tmp_path / "a").parent == tmp_path.resolve()
    assert real_path(tmp_path / "c") == (tmp_path / "d").resolve()
