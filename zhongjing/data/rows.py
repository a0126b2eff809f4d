"""Objects cut into raw records, one at a time, whatever the format; a damaged one does not end the rest."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import BinaryIO, TextIO

from zhongjing.codes import command as command_codes
from zhongjing.codes import data as data_codes
from zhongjing.data.formats import Detected
from zhongjing.data.json_values import json_values, parse_json, value_end
from zhongjing.data.records import BadRow, Row, unreadable
from zhongjing.data.table import table_rows
from zhongjing.errors import DataError


def iter_rows(stream: BinaryIO, detected: Detected) -> Iterator[Row | BadRow]:
    """Raw records of an object, from its beginning, counted from 0, damaged ones among them.

    Text gives a row for each line that is not blank. The caller closes the stream.

    Raises:
        DataError: the object as a whole is damaged, so what follows cannot be told apart.
    """
    if detected.format == "parquet":
        yield from _parquet(stream)
        return
    text = open_text(stream, detected)
    try:
        readers = {"jsonl": _json_lines, "json": json_values, "text": _lines}
        if detected.format == "csv":
            yield from table_rows(text, detected.delimiter or ",")
        else:
            yield from readers[detected.format](text)
    finally:
        text.detach()


def open_text(stream: BinaryIO, detected: Detected) -> io.TextIOWrapper:
    """The stream as text; bytes that do not decode become lone surrogates, so their record can be told."""
    return io.TextIOWrapper(
        stream, encoding=detected.encoding or "utf-8", errors="surrogateescape", newline=""
    )


def _json_lines(text: TextIO) -> Iterator[Row | BadRow]:
    index = 0
    for line, raw in enumerate(text, start=1):
        content = raw.strip(" \t\r\n\ufeff")
        if not content:
            continue
        row = parse_json(content, index, line)
        if isinstance(row, BadRow) and content[0] in "[{" and value_end(content, 0) is None:
            row = replace(row, reason=f"{row.reason}; `format: json` reads values over several lines")
        yield row
        index += 1


def _lines(text: TextIO) -> Iterator[Row | BadRow]:
    index = 0
    for line, raw in enumerate(text, start=1):
        content = raw.strip()
        if not content:
            continue
        yield Row.of_text(index, line, content, content)
        index += 1


def _parquet(stream: BinaryIO) -> Iterator[Row | BadRow]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise DataError("reading parquet needs pyarrow", code=command_codes.MISSING_PACKAGE) from None
    try:
        index = 0
        file = ParquetFile(stream)
        names = file.schema_arrow.names
        if len(set(names)) < len(names):
            raise unreadable(
                "two columns of the parquet file have the same name: one of them would be lost",
                "give every column its own name",
            )
        for batch in file.iter_batches(batch_size=1024):
            for value in batch.to_pylist():
                yield mapping_row(value, index)
                index += 1
    except (ArrowException, OSError, UnicodeDecodeError) as error:  # of damaged pages arrow raises the others
        raise DataError(
            f"the parquet file is damaged ({type(error).__name__})", code=data_codes.UNREADABLE_SOURCE
        ) from None  # arrow may quote values, and tracebacks are kept


def mapping_row(value: object, index: int) -> Row:
    """A record that comes as a mapping; its raw form is canonical JSON."""
    return Row(index, None, value, json.dumps(value, ensure_ascii=False, sort_keys=True, default=str))
