"""Standard output and error that never end a command: a result is computed before it is printed."""

import io
import os
import sys
from typing import TextIO


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
            errors="replace" if stream.errors == "strict" else stream.errors,
            line_buffering=bool(getattr(stream, "line_buffering", False)),
            write_through=bool(getattr(stream, "write_through", False)),
        )

    def write(self, text: str) -> int:
        """Write a text, or discard it if its reader is gone."""
        try:
            return super().write(text)
        except BrokenPipeError:
            self._discard_output()
            return len(text)

    def flush(self) -> None:
        """Flush what was written, or discard it if its reader is gone."""
        try:
            super().flush()
        except BrokenPipeError:
            self._discard_output()

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
