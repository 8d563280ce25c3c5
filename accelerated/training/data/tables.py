"""Tables of CSV and Parquet: rows are samples, one column the label, the others features of numbers."""

import csv
import importlib
import os
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, UserError
from .parts import Arrays, Parts, listed, numbered
from .reading import check_memory, entries, reading

TABLES = ".csv", ".tsv", ".parquet"
LABELS = "label", "labels", "class", "target", "y"
"""Names of a label's column, in whatever case, that need not be said."""

REGRESSION = "numbers are learned in Python, by fit(rule, (x, y)) with loss='squared_error' or a ForwardOnlyRegressor"

DELIMITERS = ",;\t"


class _Table(NamedTuple):
    """Features (n, d) in the order of `columns`, and the labels as they are written."""

    features: NDArray[np.float32]
    labels: list[str]
    columns: list[str]
    label: str


def find_tables(folder: Path) -> tuple[Path, Path] | None:
    """`train` and `test` of a folder that has both as tables. Raises DataError where there are more."""
    found = {
        part: [path for path in entries(folder) if path.stem.lower() == part and path.suffix.lower() in TABLES]
        for part in ("train", "test")
    }
    for paths in found.values():
        if len(paths) > 1:
            names = " and ".join(path.name for path in paths)
            raise DataError(f"data: folder '{folder}' has {names}, expected one of them")
    return (found["train"][0], found["test"][0]) if all(found.values()) else None


def read_tables(train: Path, test: Path | None, label: str | None) -> Parts:
    """The rows of one file, or of two whose columns have the same names, and the classes that the labels name.

    `label` is the column of labels. It need not be given where one has a name of LABELS. Labels are text or whole
    numbers. Classes are the training's distinct labels: in order of their numbers if all are such, else by name.

    Raises DataError, with file, line and column, for what is no number, missing values, a header or a label that is not
    there, and damaged files; UserError for Parquet files without pyarrow.
    """
    seen = _read(train, label)
    classes = _classes(seen.labels)
    if 2 * len(classes) > len(seen.labels) > 4 and all(map(_is_number, classes)):
        raise DataError(
            f"{train}, column '{seen.label}': {len(classes)} different numbers in {len(seen.labels)} rows, expected "
            f"classes of two samples and more; {REGRESSION}"
        )
    tested = None
    if test is not None:
        unseen = _read(test, seen.label)
        if unseen.columns != seen.columns:
            if sorted(unseen.columns) != sorted(seen.columns):
                differing = sorted(set(unseen.columns) ^ set(seen.columns))
                raise DataError(f"{test}: column '{differing[0]}' is in one of {train.name} and {test.name} alone")
            order = [unseen.columns.index(name) for name in seen.columns]
            unseen = unseen._replace(features=unseen.features[:, order])
        tested = _arrays(unseen, classes, test)
    return Parts(_arrays(seen, classes, train), tested, classes, tuple(seen.columns))


def read_features(path: Path, columns: Sequence[str]) -> NDArray[np.float32]:
    """The rows of a table in these columns, (n, d); it may have others. Errors as for `read_tables`."""
    return _read(path, None, columns).features


def _arrays(table: _Table, classes: tuple[str, ...], path: Path) -> Arrays:
    name = f"{path}, column '{table.label}'"
    return Arrays(table.features, numbered(table.labels, classes, name), str(path), name)


def _read(path: Path, label: str | None, wanted: Sequence[str] | None = None) -> _Table:
    """The wanted columns alone, without labels; or else all, of which one is the label's."""
    reader = _read_parquet if path.suffix.lower() == ".parquet" else _read_csv
    table = reader(path, label, wanted)
    wrong = np.argwhere(~np.isfinite(table.features))
    if len(wrong):
        row, column = wrong[0]
        raise DataError(
            f"{path}, column '{table.columns[column]}': {table.features[row, column]} in row {row}, expected finite "
            "float32 numbers; fill in missing values, or leave these rows out"
        )
    return table._replace(labels=_plain(table, path))


def _plain(table: _Table, path: Path) -> list[str]:
    """Labels, of whole numbers written alike. Raises DataError for other numbers, as a regression's."""
    try:
        numbers = [float(label) for label in table.labels]
    except ValueError:
        return table.labels
    for number in numbers:
        if not number.is_integer():
            raise DataError(
                f"{path}, column '{table.label}': {number:g}, expected classes: names or whole numbers; {REGRESSION}"
            )
    return [str(int(number)) for number in numbers]


def _chosen(
    path: Path, columns: Sequence[str], label: str | None, wanted: Sequence[str] | None
) -> tuple[list[str], str | None]:
    """The columns of features, and the label's, if it is read."""
    if wanted is None:
        label = _label_column(path, columns, label)
        return [name for name in columns if name != label], label
    for name in wanted:
        if columns.count(name) != 1:
            found = f"no column '{name}'" if name not in columns else f"two columns '{name}'"
            raise DataError(f"{path}: {found}, expected {listed(wanted)}; it has {listed(columns)}")
    return list(wanted), None


def _label_column(path: Path, columns: Sequence[str], label: str | None) -> str:
    """Raises DataError where columns have no names or one name, and where the label's is not among them."""
    names = f"expected the names of columns; it has {listed(columns)}"
    if not all(columns):
        raise DataError(
            f"{path}: column {columns.index('') + 1} has no name, {names}; an index of pandas is left out by "
            "to_csv(path, index=False)"
        )
    for name in columns:
        if columns.count(name) > 1:
            raise DataError(f"{path}: two columns '{name}', {names}; has it a header?")
    known = [name for name in columns if name.lower() in LABELS] if label is None else [label]
    if len(known) != 1 or known[0] not in columns:
        found = f"no column '{label}'" if label is not None else f"{' and '.join(known) or 'no column'} for the label"
        raise DataError(
            f"{path}: {found}, {names}; name the label's as in load(path, label='{columns[-1]}') or "
            f"--data {path}:{columns[-1]}"
        )
    if len(columns) < 2:
        raise DataError(f"{path}: no column beside '{known[0]}', expected features")
    return known[0]


def _read_csv(path: Path, label: str | None, wanted: Sequence[str] | None) -> _Table:
    with reading(path, "damaged table"), open(path, newline="", encoding="utf-8-sig") as file:
        size = os.fstat(file.fileno()).st_size
        check_memory(path, f"{size} bytes of text", 8 * size)  # text, floats of half its size, and two copies of these
        header = file.readline()
        delimiter = max(DELIMITERS, key=header.count)
        (columns,) = csv.reader([header], delimiter=delimiter, strict=True, skipinitialspace=True)
        if not columns:
            raise DataError(f"{path}: empty, expected the names of columns and rows")
        columns = [name.strip() for name in columns]
        features, label = _chosen(path, columns, label, wanted)
        places = [columns.index(name) for name in features]
        of_label = None if label is None else columns.index(label)
        values, labels = array("f"), []
        rows = csv.reader(file, delimiter=delimiter, strict=True, skipinitialspace=True)
        for row in rows:
            if not row:
                continue
            line = rows.line_num + 1
            if len(row) != len(columns):
                raise DataError(f"{path}, line {line}: {len(row)} cells, expected {len(columns)} as in its header")
            if of_label is not None:
                labels.append(row[of_label].strip())
                if not labels[-1]:
                    raise DataError(f"{path}, line {line}, column '{label}': empty, expected a label")
            cells = [row[place] for place in places]
            try:
                values.extend(map(float, cells))
            except ValueError:
                raise _no_number(path, line, features, cells, delimiter) from None
    if not values:
        raise DataError(f"{path}: no rows, expected samples below its header")
    return _Table(np.frombuffer(values, np.float32).reshape(-1, len(features)), labels, features, label or "")


def _no_number(path: Path, line: int, columns: Sequence[str], row: Sequence[str], delimiter: str) -> DataError:
    def wrong(cell: str) -> bool:
        try:
            float(cell)
        except ValueError:
            return True
        return False

    name, cell = next((name, cell) for name, cell in zip(columns, row, strict=True) if wrong(cell))
    where = f"{path}, line {line}, column '{name}'"
    if not cell.strip():
        return DataError(f"{where}: empty, expected a number; fill in missing values, or leave these rows out")
    fix = "leave the column out, or write a column of 0 and 1 for each of its values"
    if delimiter != "," and not wrong(cell.replace(",", ".")):
        fix = "write decimal points"
    return DataError(f"{where}: '{cell[:40]}', expected a number; {fix}")


def _read_parquet(path: Path, label: str | None, wanted: Sequence[str] | None) -> _Table:
    try:
        pyarrow, parquet = (importlib.import_module(name) for name in ("pyarrow", "pyarrow.parquet"))
    except ImportError as error:
        raise UserError("data: Parquet files need pyarrow; pip install pyarrow") from error
    types = pyarrow.types
    with reading(path, "damaged table"), parquet.ParquetFile(path) as file:
        schema, rows = file.schema_arrow, file.metadata.num_rows
        columns, label = _chosen(path, list(schema.names), label, wanted)
        if not rows:
            raise DataError(f"{path}: no rows, expected samples")
        check_memory(path, f"{rows} rows of {len(columns)} numbers", rows * (12 * len(columns) + 100))

    def kind(name: str) -> Any:
        found = schema.field(name).type
        return found.value_type if types.is_dictionary(found) else found

    for name in columns:
        if not any(check(kind(name)) for check in (types.is_integer, types.is_floating, types.is_boolean)):
            raise DataError(
                f"{path}, column '{name}': {kind(name)}, expected numbers; leave the column out, or write a column of "
                "0 and 1 for each of its values"
            )
    if label is not None:
        text = types.is_string(kind(label)) or types.is_large_string(kind(label))
        if not (text or any(check(kind(label)) for check in (types.is_integer, types.is_floating, types.is_boolean))):
            raise DataError(f"{path}, column '{label}': {kind(label)}, expected names or whole numbers")

    # A dictionary is what a text is stored once in, however often it is named.
    with reading(path, "damaged table"), parquet.ParquetFile(path, read_dictionary=[label] if label else []) as file:

        def column(name: str) -> Any:
            (found,) = file.read(columns=[name], use_threads=False).columns
            if len(found) != rows:
                raise ValueError(f"{len(found)} rows of column '{name}', {rows} of the table")
            if found.null_count:
                raise DataError(
                    f"{path}, column '{name}': {found.null_count} missing values, expected none; fill them in, or "
                    "leave these rows out"
                )
            return found

        features = np.empty((rows, len(columns)), np.float32)
        for place, name in enumerate(columns):
            found = column(name)
            if types.is_dictionary(found.type):
                found = found.cast(kind(name))
            with np.errstate(over="ignore"):  # becomes infinite, which is reported
                features[:, place] = found.to_numpy()
        labels: list[str] = []
        for chunk in [] if label is None else column(label).chunks:
            if types.is_dictionary(chunk.type):
                names = [str(value) for value in chunk.dictionary.to_pylist()]
                labels += [names[place] for place in chunk.indices.to_pylist()]
            else:
                labels += map(str, chunk.to_pylist())
    return _Table(features, labels, columns, label or "")


def _classes(labels: Sequence[str]) -> tuple[str, ...]:
    """Distinct labels in order, of numbers by their size."""
    distinct = set(labels)
    return tuple(sorted(distinct, key=int if all(map(_is_number, distinct)) else None))


def _is_number(label: str) -> bool:
    return label.removeprefix("-").isdecimal()
