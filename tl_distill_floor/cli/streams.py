"""Standard output and error that do not end a command when a character or their reader is missing."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO

from tl_distill_floor.errors import InputError


class TolerantStream(io.TextIOWrapper):
    """A text stream that replaces characters that its encoding lacks, and does not fail when its reader is gone."""

    mode = "w"
    """As a file that `open` returns has it."""

    @classmethod
    def replacing(cls, stream: TextIO | None) -> TextIO | None:
        """Return a tolerant stream in place of a standard stream; the stream itself if it is no file."""
        if stream is None:  # closed before the program started: keep its number from the next file that is opened
            return open(os.devnull, "w", encoding="utf-8")
        try:
            number = stream.fileno()
        except (OSError, ValueError):
            return stream
        stream.flush()
        return cls(
            open(number, "wb", closefd=False),
            encoding=stream.encoding,
            # The C locale has surrogateescape, which fails for characters that ASCII lacks.
            errors="replace" if stream.errors in ("strict", "surrogateescape") else stream.errors,
            line_buffering=bool(getattr(stream, "line_buffering", False)),
            write_through=bool(getattr(stream, "write_through", False)),
        )

    def write(self, text: str) -> int:
        """Write a text, or discard it if its reader is gone.

        Raises:
            InputError: the disk is full, for example.
        """
        with self._discarding_on_error():
            super().write(text)
        return len(text)

    def flush(self) -> None:
        """Flush what was written, or discard it if its reader is gone.

        Raises:
            InputError: the disk is full, for example.
        """
        with self._discarding_on_error():
            super().flush()

    @contextlib.contextmanager
    def _discarding_on_error(self) -> Iterator[None]:
        """Discard the output after an error of the operating system, so that it is reported only once."""
        try:
            yield
        except BrokenPipeError:
            self._discard_output()
        except OSError as error:
            self._discard_output()
            raise InputError(
                f"cannot write the output: {error.strerror}; send it to another file, or free some space"
            ) from error

    def _discard_output(self) -> None:
        """Send this stream's output to the null device from now on."""
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.fileno())
        os.close(null)
        super().flush()


def use_tolerant_streams() -> None:
    """Replace the process's standard output and error by tolerant streams."""
    sys.stdout = TolerantStream.replacing(sys.stdout) or sys.stdout
    sys.stderr = TolerantStream.replacing(sys.stderr) or sys.stderr
