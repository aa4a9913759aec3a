"""Tables with a column of audio, as `datasets` stores them: enhanced row by row, every other column as it was."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from command_dacse.files import Job
from command_dacse.outputs import written_when_done
from command_dacse.remote import RemoteFile, is_remote, open_remote
from command_dacse.results import Result, failed_result, write_sound
from command_dacse.terminal import one_line

if TYPE_CHECKING:
    import pyarrow

    from pipeline_dacse.call_dacse import EnhancedRecording

ROWS = 64  # read together; as many make a row group of the result


class AudioTable:
    """One table to be enhanced.

    It is read once: `recordings` reads a batch of rows when the engine asks for the first of them, and `write` takes
    the batch from there when its last one is done.

    Args:
        job: names of the table and of its result.
        column: which column is enhanced; None where there is but one of audio.

    Raises:
        ValueError: it is no table, or it does not say which column is meant.
        OSError: it cannot be read.
    """

    def __init__(self, job: Job, column: str | None):
        import pyarrow
        from pyarrow import parquet

        self.job, self.batches = job, deque()
        source = open_remote(job.source) if is_remote(job.source) else job.source
        try:
            self.file = parquet.ParquetFile(source, pre_buffer=False)
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"{job.source} is no parquet table ({one_line(error)})") from error
        self.column = _find_column(job.source, self.file.schema_arrow, column)
        self.error: OSError | None = None

    def __len__(self) -> int:
        return self.file.metadata.num_rows

    def recordings(self) -> Iterator[Any]:
        """Yields what the engine reads of each row, an empty dict for one without audio."""
        given = 0
        try:
            for batch in self.file.iter_batches(ROWS):
                self.batches.append(batch)
                for stored in batch[self.column]:
                    yield self._locate(stored.as_py() or {}, f"{self.job.source}#{given}")
                    given += 1
        except Exception as error:  # of pyarrow, or of the place it reads from
            self.error = OSError(f"{self.job.source} cannot be read to its end ({one_line(error)})")
            yield from itertools.repeat({}, len(self) - given)

    def write(self, enhanced: Iterator[EnhancedRecording], audio_format: str | None) -> Iterator[Result]:
        """Writes the result when all its rows are done, and yields what became of each of them.

        A row whose audio cannot be read keeps its place and has none in the result.

        Args:
            enhanced: of the rows, in order.
            audio_format: of their audio; None is wav.

        Raises:
            DiskFull: there is no room left.
        """
        from pyarrow import parquet

        schema = _without_rate(self.file.schema_arrow, self.column)
        rows, results = itertools.islice(enhanced, len(self)), []
        try:
            with written_when_done(self.job.target) as file, parquet.ParquetWriter(file, schema) as writer:
                while len(results) < len(self):
                    stored, done = self._enhance_batch(rows, len(results), audio_format)
                    writer.write_batch(stored.replace_schema_metadata(schema.metadata))
                    results += done
        except (OSError, ValueError) as error:
            results = [failed_result(self.job, error)]
            self.batches.clear()
            deque(rows, maxlen=0)  # the next job's come after them
        yield from results

    def _enhance_batch(
        self, rows: Iterator[EnhancedRecording], first: int, audio_format: str | None
    ) -> tuple[pyarrow.RecordBatch, list[Result]]:
        """Rows that were read together, and what became of each."""
        import pyarrow
        import pyarrow.compute

        enhanced = next(rows)  # now a batch has been read, or has turned out not to be readable
        if self.error is not None:
            raise self.error
        batch = self.batches.popleft()
        paths = pyarrow.compute.struct_field(batch[self.column], "path").to_pylist()
        enhanced = itertools.chain([enhanced], rows)
        done = [
            self._enhance_row(row, first + index, path, audio_format)
            for index, (path, row) in enumerate(zip(paths, enhanced, strict=False))
        ]
        place = batch.schema.get_field_index(self.column)
        field = batch.schema.field(place)
        audio = pyarrow.array([stored for stored, _ in done], field.type)
        return batch.set_column(place, field, audio), [result for _, result in done]

    def _enhance_row(
        self, enhanced: EnhancedRecording, index: int, path: str | None, audio_format: str | None
    ) -> tuple[dict | None, Result]:
        """What a row holds instead of its audio, and what became of it."""
        name = f"{self.job.source}#{index}"
        if enhanced.audio == {}:
            return None, Result(name, self.job.target, "skipped")
        path = Path(path or str(index)).with_suffix(f".{audio_format or 'wav'}").name
        content = io.BytesIO()
        try:
            seconds, loss = write_sound(enhanced, contextlib.nullcontext(content), path, audio_format)
        except (OSError, ValueError) as error:
            return None, Result(name, self.job.target, "failed", error=one_line(error))
        stored = {"bytes": content.getvalue(), "path": path}
        return stored, Result(name, self.job.target, "enhanced", seconds, warnings=[loss] if loss else [])

    def _locate(self, stored: dict[str, Any], name: str) -> Any:
        """Audio that is stored, or that lies beside the table, under the name that people know the row by."""
        path = stored.get("path")
        if stored.get("bytes") is not None:
            return {"bytes": stored["bytes"], "path": name}
        if path is None:
            return {}
        place = path if is_remote(path) else os.path.join(self.job.source.rpartition("/")[0], path)
        return RemoteFile(place, name)


def _find_column(source: str, schema: pyarrow.Schema, wanted: str | None) -> str:
    """The column of audio to enhance.

    Raises:
        ValueError: there is none, or it is not clear which.
    """
    import pyarrow

    features = _info(schema).get("info", {}).get("features", {})
    found = [
        field.name
        for field in schema
        if pyarrow.types.is_struct(field.type)
        and {"bytes", "path"} <= {part.name for part in field.type}
        and features.get(field.name, {}).get("_type", "Audio") == "Audio"
    ]
    if wanted in found or (wanted is None and len(found) == 1):
        return wanted or found[0]
    if not found:
        raise ValueError(f"{source} has no column of audio as `datasets` stores it, only {', '.join(schema.names)}")
    raise ValueError(f"{source} has the columns of audio {', '.join(found)}; say which one with --column")


def _without_rate(schema: pyarrow.Schema, column: str) -> pyarrow.Schema:
    """The schema, in which the column's sampling rate is that of each file: what was said of the input is over."""
    info = _info(schema)
    if column in info.get("info", {}).get("features", {}):
        info["info"]["features"][column].pop("sampling_rate", None)
        return schema.with_metadata(schema.metadata | {b"huggingface": json.dumps(info).encode()})
    return schema


def _info(schema: pyarrow.Schema) -> dict[str, Any]:
    """What `datasets` says of a table's columns."""
    return json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
