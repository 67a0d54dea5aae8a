import json

import pytest

from brats_cli.core.data.manifest import MANIFEST, read_manifest


def test_rows_come_in_order_and_lines_that_are_none_are_left_out(tmp_path):
    rows = [{"case": "B", "review": 0.5}, {"case": "A"}, {"case": "B", "review": 0.25}]
    whole = [json.dumps(row) for row in rows]
    # A process was killed while it wrote; and what no version of brats writes.
    spoilt = ['{"case": "C", "rev', "[1]", "7", "null", "", "[" * 100_000]
    lines = [*spoilt[:2], whole[0], *spoilt[2:4], whole[1], *spoilt[4:], whole[2], '{"case": "D"']
    (tmp_path / MANIFEST).write_text("\n".join(lines))
    assert read_manifest(tmp_path / MANIFEST) == rows


@pytest.mark.parametrize("is_folder", [False, True])
def test_where_there_is_no_manifest_there_are_no_rows(tmp_path, is_folder):
    if is_folder:
        (tmp_path / MANIFEST).mkdir()
    assert read_manifest(tmp_path / MANIFEST) == []
