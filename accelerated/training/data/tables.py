"""Tables of CSV and Parquet: rows are samples, one column the label, the others features: numbers, or names.

A column of names becomes one of 0 and 1 for each of its names, called `column=name`.
"""

import csv
import importlib
import os
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

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

MOST_NAMES = 256
"""Different names in a column, above which they are rather those of samples, or text."""

Names: TypeAlias = Mapping[str, Sequence[str]]
"""By column, the names that a column of names may have, in order."""


class _Table(NamedTuple):
    """Numbers (n, d), and what columns of names have, both in the order of `columns`; labels as they are written."""

    numbers: NDArray[np.float32]
    words: dict[str, list[str]]
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

    A column whose first cell is no number, or that Parquet has as text, is of names, of which training's are known.
    `label` is the column of labels. It need not be given where one has a name of LABELS. Labels are text or whole
    numbers. Classes are the training's distinct labels: in order of their numbers if all are such, else by name.

    Raises DataError, with file, line and column, for what is no number, missing values, a header or a label that is not
    there, and damaged files; UserError for Parquet files without pyarrow.
    """
    seen = _read(train, label)
    names = {column: _names(words, f"{train}, column '{column}'") for column, words in seen.words.items()}
    classes = _classes(seen.labels)
    if 2 * len(classes) > len(seen.labels) > 4 and all(map(_is_number, classes)):
        raise DataError(
            f"{train}, column '{seen.label}': {len(classes)} different numbers in {len(seen.labels)} rows, expected "
            f"classes of two samples and more; {REGRESSION}"
        )
    tested = None
    if test is not None:
        unseen = _read(test, seen.label, names=names)
        if differing := sorted(set(unseen.columns) ^ set(seen.columns)):
            raise DataError(f"{test}: column '{differing[0]}' is in one of {train.name} and {test.name} alone")
        tested = _arrays(unseen, seen.columns, names, classes, test)
    columns = tuple(feature for column in seen.columns for feature in _features(column, names))
    if len(set(columns)) < len(columns):
        raise DataError(f"{train}: columns called as those of names will be: {listed(columns)}; rename one")
    return Parts(_arrays(seen, seen.columns, names, classes, train), tested, classes, columns)


def read_features(path: Path, columns: Sequence[str]) -> NDArray[np.float32]:
    """The rows of a table in these columns, (n, d), as training had them; it may have others.

    Errors as for `read_tables`.
    """
    table = _read(path, None, columns)
    return _joined(table, table.columns, _sources(columns, table.columns)[1], path)


def _sources(features: Sequence[str], columns: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """The columns that features are of, among these if they can be, and the names of those that are of names."""
    found: list[str] = []
    names: dict[str, list[str]] = {}
    for feature in features:
        heads = [feature[:place] for place, character in enumerate(feature) if character == "="]
        source = next((head for head in heads if feature not in columns and head in columns), feature)
        found.append(source)
        if source != feature:
            names.setdefault(source, []).append(feature[len(source) + 1 :])
    return list(dict.fromkeys(found)) if names else found, names


def _features(column: str, names: Names) -> list[str]:
    """What a column becomes: itself, or one for each of its names."""
    return [f"{column}={name}" for name in names[column]] if column in names else [column]


def _names(words: Sequence[str], where: str) -> list[str]:
    """Those of a column, in order. Raises DataError for those of samples, and for numbers among them."""
    found = sorted(set(words))
    if len(found) > MOST_NAMES or 2 * len(found) > len(words) > 4:
        raise DataError(
            f"{where}: {len(found)} different names in {len(words)} rows, expected numbers, or names of two rows and "
            f"more, {MOST_NAMES} at most; leave the column out"
        )
    return found


def _joined(table: _Table, columns: Sequence[str], names: Names, path: Path) -> NDArray[np.float32]:
    """All features, (n, d), in the order of these columns."""
    numeric = [column for column in table.columns if column not in table.words]
    if columns == numeric:
        return table.numbers
    check_memory(path, "columns of names", 4 * len(table.numbers) * sum(len(_features(c, names)) for c in columns))
    found = []
    for column in columns:
        if column not in names:
            found.append(table.numbers[:, [numeric.index(column)]])
            continue
        places = {name: place for place, name in enumerate(names[column])}
        for row, word in enumerate(table.words[column]):
            if word not in places:
                raise DataError(
                    f"{path}, column '{column}': '{word[:40]}' in row {row}, expected one of training's: "
                    f"{listed(names[column])}"
                )
        found.append(np.eye(len(places), dtype=np.float32)[[places[word] for word in table.words[column]]])
    return np.concatenate(found, axis=1)


def _arrays(table: _Table, columns: Sequence[str], names: Names, classes: tuple[str, ...], path: Path) -> Arrays:
    name = f"{path}, column '{table.label}'"
    return Arrays(_joined(table, columns, names, path), numbered(table.labels, classes, name), str(path), name)


def _read(path: Path, label: str | None, wanted: Sequence[str] | None = None, names: Names | None = None) -> _Table:
    """The wanted columns alone, without labels; or else all, of which one is the label's.

    Those in `names` are of names; unless given, those whose first cell is no number.
    """
    reader = _read_parquet if path.suffix.lower() == ".parquet" else _read_csv
    table = reader(path, label, wanted, names)
    numeric = [column for column in table.columns if column not in table.words]
    wrong = np.argwhere(~np.isfinite(table.numbers))
    if len(wrong):
        row, column = wrong[0]
        raise DataError(
            f"{path}, column '{numeric[column]}': {table.numbers[row, column]} in row {row}, expected finite "
            "float32 numbers; fill in missing values, or leave these rows out"
        )
    for name, words in table.words.items():
        number = next((word for word in dict.fromkeys(words) if _as_number(word)), None)
        if number is not None:
            raise DataError(
                f"{path}, column '{name}': '{number[:40]}' in row {words.index(number)} among names, expected all "
                "numbers or all names; fill in missing values, or leave the column out"
            )
    return table._replace(labels=_plain(table, path))


def _as_number(cell: str) -> bool:
    """Whether it is one, or one with a unit of money, percent or a decimal comma."""
    try:
        float(cell.replace(" ", "").replace(",", ".").strip("$€£¥%"))
    except ValueError:
        return False
    return True


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
    path: Path, columns: Sequence[str], label: str | None, wanted: Sequence[str] | None, names: Names | None
) -> tuple[list[str], str | None, Names | None]:
    """The columns of features, the label's, if it is read, and the names of those that are of names, if known."""
    if wanted is None:
        label = _label_column(path, columns, label)
        return [name for name in columns if name != label], label, names
    sources, names = _sources(wanted, columns)
    for name in sources:
        if columns.count(name) != 1:
            found = f"no column '{name}'" if name not in columns else f"two columns '{name}'"
            raise DataError(f"{path}: {found}, expected {listed(wanted)}; it has {listed(columns)}")
    return sources, None, names


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


def _read_csv(path: Path, label: str | None, wanted: Sequence[str] | None, names: Names | None) -> _Table:
    with reading(path, "damaged table"), open(path, newline="", encoding="utf-8-sig") as file:
        size = os.fstat(file.fileno()).st_size
        check_memory(path, f"{size} bytes of text", 8 * size)  # text, floats of half its size, and two copies of these
        header = file.readline()
        delimiter = max(DELIMITERS, key=header.count)
        (columns,) = csv.reader([header], delimiter=delimiter, strict=True, skipinitialspace=True)
        if not columns:
            raise DataError(f"{path}: empty, expected the names of columns and rows")
        columns = [name.strip() for name in columns]
        features, label, names = _chosen(path, columns, label, wanted, names)
        places = {name: columns.index(name) for name in features}
        of_label = None if label is None else columns.index(label)
        values, labels = array("f"), []
        words: dict[str, list[str]] | None = None if names is None else {name: [] for name in features if name in names}
        known: dict[str, str] = {}  # each name is held once
        count = 0
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
            count += 1
            if words is None:
                words = {
                    name: [] for name in features if row[places[name]].strip() and not _as_number(row[places[name]])
                }
            for name, found in words.items():
                word = row[places[name]].strip()
                if not word:
                    raise DataError(
                        f"{path}, line {line}, column '{name}': empty, expected a name; fill in missing values, or "
                        "leave these rows out"
                    )
                found.append(known.setdefault(word, word))
            cells = {name: row[place] for name, place in places.items() if name not in words}
            try:
                values.extend(map(float, cells.values()))
            except ValueError:
                raise _no_number(path, line, cells, delimiter) from None
    if not count:
        raise DataError(f"{path}: no rows, expected samples below its header")
    return _Table(np.frombuffer(values, np.float32).reshape(count, -1), words or {}, labels, features, label or "")


def _no_number(path: Path, line: int, cells: Mapping[str, str], delimiter: str) -> DataError:
    def wrong(cell: str) -> bool:
        try:
            float(cell)
        except ValueError:
            return True
        return False

    name, cell = next((name, cell) for name, cell in cells.items() if wrong(cell))
    where = f"{path}, line {line}, column '{name}'"
    if not cell.strip():
        return DataError(f"{where}: empty, expected a number; fill in missing values, or leave these rows out")
    fix = "a column has numbers alone, or names alone"
    if delimiter != "," and not wrong(cell.replace(",", ".")):
        fix = "write decimal points"
    return DataError(f"{where}: '{cell[:40]}', expected a number; {fix}")


def _read_parquet(path: Path, label: str | None, wanted: Sequence[str] | None, names: Names | None) -> _Table:
    try:
        pyarrow, parquet = (importlib.import_module(name) for name in ("pyarrow", "pyarrow.parquet"))
    except ImportError as error:
        raise UserError("data: Parquet files need pyarrow; pip install pyarrow") from error
    types = pyarrow.types
    with reading(path, "damaged table"), parquet.ParquetFile(path) as file:
        schema, rows = file.schema_arrow, file.metadata.num_rows
        columns, label, names = _chosen(path, list(schema.names), label, wanted, names)
        if not rows:
            raise DataError(f"{path}: no rows, expected samples")
        check_memory(path, f"{rows} rows of {len(columns)} numbers", rows * (12 * len(columns) + 100))

    def kind(name: str) -> Any:
        found = schema.field(name).type
        return found.value_type if types.is_dictionary(found) else found

    def is_text(name: str) -> bool:
        return bool(types.is_string(kind(name)) or types.is_large_string(kind(name)))

    def is_number(name: str) -> bool:
        return any(check(kind(name)) for check in (types.is_integer, types.is_floating, types.is_boolean))

    of_names = [name for name in columns if (is_text(name) if names is None else name in names)]
    for name in columns:
        if not (is_text(name) if name in of_names else is_number(name)):
            expected = "names" if name in of_names else "numbers" if names is not None else "numbers or names"
            raise DataError(f"{path}, column '{name}': {kind(name)}, expected {expected}; leave the column out")
    if label is not None and not (is_text(label) or is_number(label)):
        raise DataError(f"{path}, column '{label}': {kind(label)}, expected names or whole numbers")

    # A dictionary is what a text is stored once in, however often it is named.
    texts = [*of_names, *([label] if label is not None else [])]
    with reading(path, "damaged table"), parquet.ParquetFile(path, read_dictionary=texts) as file:

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

        def written(name: str) -> list[str]:
            """The column's cells as text."""
            cells: list[str] = []
            for chunk in column(name).chunks:
                if types.is_dictionary(chunk.type):
                    known = [str(value) for value in chunk.dictionary.to_pylist()]
                    cells += [known[place] for place in chunk.indices.to_pylist()]
                else:
                    cells += map(str, chunk.to_pylist())
            return cells

        numeric = [name for name in columns if name not in of_names]
        numbers = np.empty((rows, len(numeric)), np.float32)
        for place, name in enumerate(numeric):
            found = column(name)
            if types.is_dictionary(found.type):
                found = found.cast(kind(name))
            with np.errstate(over="ignore"):  # becomes infinite, which is reported
                numbers[:, place] = found.to_numpy()
        words = {name: written(name) for name in of_names}
        labels = [] if label is None else written(label)
    return _Table(numbers, words, labels, columns, label or "")


def _classes(labels: Sequence[str]) -> tuple[str, ...]:
    """Distinct labels in order, of numbers by their size."""
    distinct = set(labels)
    return tuple(sorted(distinct, key=int if all(map(_is_number, distinct)) else None))


def _is_number(label: str) -> bool:
    return label.removeprefix("-").isdecimal()
