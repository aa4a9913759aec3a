"""Jobs done by one engine, whose batches cross them: each is read, enhanced and written. Knows no cluster."""

from __future__ import annotations

import itertools
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from command_dacse.engine import EngineSettings
from command_dacse.files import STANDARD, WEB, Job
from command_dacse.outputs import existing
from command_dacse.remote import RemoteFile, is_remote, open_remote
from command_dacse.results import Result, audio_warnings, failed_result, name_of, write_result
from command_dacse.search import is_table
from command_dacse.tables import AudioTable
from command_dacse.terminal import one_line

if TYPE_CHECKING:
    from pipeline_dacse import Enhancer
    from pipeline_dacse.call_dacse import EnhancedRecording

TABLE_PLACES = 2**32  # numbers for the rows of each table, after those of all files

NumberedJob = tuple[int, Job]  # with its place among all that the command was given


@dataclass
class EnhanceWork:
    """Does jobs; what is handed to another process is how.

    Args:
        settings: of the engine.
        audio_format: of the results; None goes by their names, and is wav in tables.
        column: of tables, the one to enhance; None where there is but one of audio.
    """

    settings: EngineSettings
    audio_format: str | None = None
    column: str | None = None

    @property
    def device(self) -> str | None:
        """Where it works, if it has begun."""
        enhancer = vars(self).get("enhancer")
        return enhancer and str(enhancer.model.device)

    @cached_property
    def enhancer(self) -> Enhancer:
        """The engine, loaded when it is first needed."""
        return self.settings.load()

    def do(self, jobs: Iterable[NumberedJob]) -> Iterator[Result]:
        """Does jobs one after the other, and yields what becomes of each file, and of each row of a table.

        What is drawn for a recording follows from its place, however the jobs are shared out.

        Raises:
            DiskFull: there is no room left for a result.
        """
        opened: deque[AudioFile | AudioTable | Unreadable] = deque()
        recordings, places = itertools.tee(self._recordings(jobs, opened))
        stream = self.enhancer.stream_many(
            (audio for audio, _ in recordings), self.settings.make_options(), (place for _, place in places)
        )

        def write(enhanced: Iterator[EnhancedRecording]) -> Iterator[Result]:
            yield from opened.popleft().write(enhanced, self.audio_format)

        def results() -> Iterator[Result]:
            for enhanced in stream:
                while not len(opened[0]):
                    yield from write(iter(()))
                yield from write(itertools.chain([enhanced], stream))
            while opened:
                yield from write(iter(()))

        with audio_warnings() as said:
            for result in results():
                result.warnings += said.pop(name_of(result.input), ())
                yield result

    def _recordings(
        self, jobs: Iterable[NumberedJob], opened: deque[AudioFile | AudioTable | Unreadable]
    ) -> Iterator[tuple[Any, int]]:
        """Yields recordings with their places, and appends what they are read from."""
        for place, job in jobs:
            try:
                source = AudioTable(job, self.column) if is_table(job.source) else AudioFile(job)
            except (OSError, ValueError) as error:
                source = Unreadable(job, error)
            opened.append(source)
            for row, audio in enumerate(source.recordings()):
                yield audio, (place + 1) * TABLE_PLACES + row if is_table(job.source) else place


@dataclass
class SharedWork:
    """Does chunks of jobs in one process of many.

    Args:
        work: how.
        overwrite: whether results that are there when a chunk begins are of an earlier call. Else they are of a worker
            that died over the chunk.
    """

    work: EnhanceWork
    overwrite: bool
    folder: str = field(default_factory=os.getcwd)  # of the command, where relative names begin
    failure: str | None = None

    def __call__(self, jobs: list[NumberedJob]) -> tuple[list[Result], str | None]:
        """What became of jobs, and why this process can do no others, if it cannot."""
        results: list[Result] = []
        try:
            if not all(is_remote(name) or os.path.isabs(name) for _, job in jobs for name in (job.source, job.target)):
                os.chdir(self.folder)
            for _, job in [] if self.overwrite else jobs:
                if not is_table(job.source) and existing([job.target]):
                    results.append(Result(job.source, job.target, "enhanced", _seconds(job)))
            made = {result.output for result in results}
            if self.failure is None:
                for result in self.work.do((place, job) for place, job in jobs if job.target not in made):
                    results.append(result)
        except (OSError, ValueError) as error:
            self.failure = one_line(error)
        return results, self.failure


def _seconds(job: Job) -> float:
    """How long a result is."""
    from soundfile import info

    with open_remote(job.target) as file:
        return info(file).duration


@dataclass
class AudioFile:
    """One recording: a file here or elsewhere, or standard input."""

    job: Job

    def __len__(self) -> int:
        return 1

    def recordings(self) -> Iterator[Any]:
        """What the engine reads."""
        source = self.job.source
        if source == STANDARD:
            yield StandardInput()
        else:
            yield RemoteFile(source) if is_remote(source) and not source.startswith(WEB) else source

    def write(self, enhanced: Iterator[EnhancedRecording], audio_format: str | None) -> Iterator[Result]:
        """Writes the result and yields what became of it."""
        yield write_result(self.job, next(enhanced), audio_format)


@dataclass
class Unreadable:
    """A table that cannot be read."""

    job: Job
    error: OSError | ValueError

    def __len__(self) -> int:
        return 0

    def recordings(self) -> Iterator[Any]:
        """None."""
        return iter(())

    def write(self, enhanced: Iterator[EnhancedRecording], audio_format: str | None) -> Iterator[Result]:
        """Yields why."""
        yield failed_result(self.job, self.error)


class StandardInput:
    """Standard input as a file to be read, under the name that people know it by."""

    name = name_of(STANDARD)

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes, or all."""
        return sys.stdin.buffer.read(size)
