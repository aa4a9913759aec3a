"""What people see: lines on standard error in which nothing in a name is markup, and progress."""

import errno
import os
import shutil
import sys
import unicodedata
from typing import BinaryIO

import typer

CLOSED = "it is closed"  # of a standard stream
NOT_SHOWN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # controls, marks of direction, halves of characters, line ends


def say(text: str) -> None:
    """One line on standard error."""
    typer.echo(shown(text), err=True)


def shown(text: str) -> str:
    r"""A text in one line, with what a terminal would act on (or could not write) in escapes.

    >>> print(shown("two\nlines, \x1b[31m, \udcff; 音 [bold] stays"))
    two\nlines, \x1b[31m, \udcff; 音 [bold] stays
    """
    return "".join(_escaped(char) if unicodedata.category(char) in NOT_SHOWN else char for char in text)


def one_line(error: Exception) -> str:
    """An error's message without line breaks and numbers of errors.

    >>> one_line(FileNotFoundError(2, "No such file or directory", "a.wav")), one_line(ValueError("so\\nso"))
    ('a.wav: No such file or directory', 'so so')
    """
    message = str(error)
    if isinstance(error, OSError) and error.strerror:
        message = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    return " ".join(message.split())


def progress_bar():
    """A progress display on standard error, where that is a terminal; it goes away when done."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def open_standard_streams() -> None:
    """Opens standard streams that were closed, on nothing: else the next file to be opened would take their place."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)
    if sys.stdout is not None:
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error does: help has such characters, too


def write_out(file: BinaryIO) -> None:
    """Copies a file to standard output.

    Raises:
        OSError: It is closed, full, or nothing reads from it.
    """
    if sys.stdout is None:
        raise OSError(errno.EBADF, CLOSED)
    try:
        shutil.copyfileobj(file, sys.stdout.buffer, 1 << 20)
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else what is left is tried again, in vain, when Python ends
        raise


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode()
