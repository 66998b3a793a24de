"""Base classes of the records that display themselves, and that save and load themselves as one file."""

import dataclasses
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeVar

import numpy as np

from tl_distill_floor.errors import InputError
from tl_distill_floor.storage.versioned import load_arrays, load_record, resolve_file, save_arrays, save_record

if TYPE_CHECKING:
    import plotly.graph_objects as go

AnyJsonFile = TypeVar("AnyJsonFile", bound="JsonFile")
AnyArrayRecord = TypeVar("AnyArrayRecord", bound="ArrayRecord")
VIEWS = "tl_distill_floor.display.views"
"""Module with the table and the figure of each record, imported by name as pandas imports a plotting backend."""


class Displayable:
    """A dataclass with a table in notebooks and a figure."""

    def __getstate__(self) -> dict[str, object]:
        """Return the fields alone: what was computed from them and kept may hold functions, which pickle refuses."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]

    def plot(self) -> "go.Figure":
        """Return the record as a plotly figure.

        Example:
            >>> floor.plot().show()  # doctest: +SKIP
        """
        figure: go.Figure = import_module(VIEWS).figure_of(self)
        return figure

    def _repr_html_(self) -> str:
        """Return the record as an HTML table, for notebooks."""
        html: str = import_module(VIEWS).html_of(self)
        return html


class JsonFile:
    """A dataclass that is saved as one JSON file."""

    FILE_NAME: ClassVar[str]
    """Name of the file in a run directory."""
    KIND: ClassVar[str]
    """Name of the file format."""
    COMMAND: ClassVar[str]
    """Command that creates such a file, for error messages."""
    INDENT: ClassVar[int | None] = 1
    """Indentation of the JSON text; None writes one line."""

    def save(self, path: str | Path) -> Path:
        """Save the record as JSON.

        Args:
            path: the file, or a directory that gets a file with the usual name, such as `calibration.json`.

        Returns:
            Path of the file.

        Raises:
            InputError: the file cannot be written.

        Example:
            >>> calibration.save("runs/tiny")  # doctest: +SKIP
            PosixPath('runs/tiny/calibration.json')
        """
        return save_record(self, resolve_file(path, self.FILE_NAME), self.KIND, indent=self.INDENT)

    @classmethod
    def load(cls: type[AnyJsonFile], path: str | Path) -> AnyJsonFile:
        """Load a record that `save` wrote.

        Args:
            path: the file, or its directory.

        Returns:
            The record.

        Raises:
            InputError: the file is missing, truncated, in another format, or of another version.

        Example:
            >>> calibration = Calibration.load("runs/tiny")  # doctest: +SKIP
        """
        return load_record(cls, resolve_file(path, cls.FILE_NAME), cls.KIND, cls.COMMAND)


class JsonRecord(JsonFile, Displayable):
    """A dataclass that is saved as one JSON file and displayed."""


class ArrayRecord(Displayable):
    """A dataclass of arrays and numbers that is saved as one safetensors file. Fields that are None are left out."""

    FILE_NAME: ClassVar[str]
    """Name of the file in a run directory."""
    KIND: ClassVar[str]
    """Name of the file format."""

    def save(self, path: str | Path) -> Path:
        """Save the record as a safetensors file.

        Args:
            path: the file, or a directory that gets a file with the usual name, such as `simulated.safetensors`.

        Returns:
            Path of the file.

        Raises:
            InputError: the file cannot be written.

        Example:
            >>> floor.simulation.save("runs/tiny")  # doctest: +SKIP
            PosixPath('runs/tiny/simulated.safetensors')
        """
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
        scalars = {name: value for name, value in values.items() if name not in arrays and value is not None}
        return save_arrays(resolve_file(path, self.FILE_NAME), self.KIND, arrays, scalars)

    @classmethod
    def load(cls: type[AnyArrayRecord], path: str | Path) -> AnyArrayRecord:
        """Load a record that `save` wrote.

        Args:
            path: the file, or its directory.

        Returns:
            The record.

        Raises:
            InputError: the file is missing, truncated, in another format, or of another version.

        Example:
            >>> simulation = Simulation.load("runs/tiny")  # doctest: +SKIP
        """
        file = resolve_file(path, cls.FILE_NAME)
        arrays, scalars = load_arrays(file, cls.KIND)
        try:
            return cls(**arrays, **scalars)
        except (TypeError, ValueError, IndexError) as error:
            raise InputError(f"{file} is not a complete {cls.KIND} file ({error}); run tl-floor measure") from error
