"""The writer of tables: column names, numbers, empty cells, the same rows in every format."""

import csv
import io
import json

import numpy as np

from zoo.outputs.table import Table, decimals, score_columns

RESERVED = {"input", "label", "labels", "score", "value", "error", "message"}


def test_every_label_has_a_column_of_its_own() -> None:
    assert score_columns(("cat", "dog"), RESERVED) == ("cat", "dog")
    assert score_columns(("label", "score:label"), RESERVED) == ("score:score:label", "score:label")
    columns = score_columns(("score:label", "label", "score"), RESERVED)
    assert columns == ("score:label", "score:score:label", "score:score")
    assert score_columns(("score", "label"), {"input", "label"}) == ("score", "score:label")


def test_the_formats_hold_the_same_rows() -> None:
    from pyarrow import parquet

    table = Table(("input", "label", "p"), frozenset(["p"]))
    numbers = np.array([0.1, 1 / 3, 1e-30], np.float32)
    rows = [
        ["a", 'x,"y"\n', decimals(numbers)[0]], ["b", "", decimals(numbers)[1]], ["c", None, None],
        ["d", "z", decimals(numbers)[2]],
    ]  # fmt: skip
    lines = table.json_lines(rows)
    found = [json.loads(line) for line in lines.splitlines()]
    assert [list(row) for row in found] == [
        ["input", "label", "p"],
        ["input", "label", "p"],
        ["input"],
        [*table.columns],
    ]
    buffer = io.BytesIO()
    table.write_parquet(lines.splitlines(), buffer, {})
    stored = parquet.read_table(buffer)
    assert stored["label"].to_pylist() == [row[1] for row in rows]
    assert stored["p"].to_pylist()[:2] == numbers.tolist()[:2]
    read = list(csv.reader(io.StringIO(table.csv(rows).decode(), newline="")))
    assert [row[1] for row in read] == [row[1] or "" for row in rows]
    for got in ([read[0], read[1], read[3]], [list(found[at].values()) for at in (0, 1, 3)]):
        assert [np.float32(row[2]) for row in got] == numbers.tolist()
