"""`FloorPrediction`: the predicted loss floor of every student width, saved beside the statistics it came from."""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from tl_distill_floor.errors import InputError
from tl_distill_floor.records import (
    FLOOR_FILE,
    STATS_FILE,
    CostUnit,
    FeatureStats,
    check_format,
    file_in,
    write_atomically,
)
from tl_distill_floor.theory.allocation import by_cost, tail_costs
from tl_distill_floor.theory.capacity import Number, n_held

if TYPE_CHECKING:
    import plotly.graph_objects as go

Interval = tuple[float, float]


@dataclass(frozen=True, eq=False)
class FloorPrediction:
    """The predicted loss floor over student widths. Losses are in `unit`, widths in dimensions, intervals are 95 %."""

    stats: FeatureStats
    min_count: int
    """A feature is alive when it fired on at least this many tokens."""
    n_features: int
    """F: alive features."""
    alpha: float
    """Sparsity: one less the mean firing rate of the alive features."""
    capacity: float
    """g(α), features per dimension."""
    critical_width: float
    """d* = F / g(α), dimensions."""
    n_features_interval: Interval
    alpha_interval: Interval
    critical_width_interval: Interval
    widths: Int64[np.ndarray, " width"]
    theorem: Float64[np.ndarray, " width"]
    """Theorem 1: the summed cost of the features beyond the ⌊d · g(α)⌋ most costly."""
    interval: Float64[np.ndarray, "width 2"]
    """(low, high) of `expected` at each width, from a bootstrap over blocks of the text."""
    independent: Float64[np.ndarray, " width"] | None = None
    """What training reaches on features that fire independently; None where it was not computed."""
    simulated: Float64[np.ndarray, " width"] | None = None
    """What a bottleneck student reaches on the real codes; None where it was not computed."""
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.widths)
        for name in ("theorem", "independent", "simulated", "interval"):
            values = getattr(self, name)
            if values is not None and (len(values) != n or (values < 0).any()):
                raise ValueError(f"{name} must hold {n} losses of at least 0, one a width")
        if n < 1 or (self.widths < 1).any() or (np.diff(self.widths) <= 0).any():
            raise ValueError("widths must be at least one whole number above 0, each once, in rising order")

    @property
    def unit(self) -> CostUnit:
        return self.stats.cost_unit

    @property
    def expected(self) -> Float64[np.ndarray, " width"]:
        """The best supported of the predictions that exist: simulated, else independent, else theorem."""
        return next(p for p in (self.simulated, self.independent, self.theorem) if p is not None)

    @property
    def total(self) -> float:
        """The summed cost of all alive features: the floor of a student that holds none."""
        return float(self.stats.cost[self.stats.alive(self.min_count)].sum())

    @property
    def teacher_floor(self) -> float:
        """Theorem 1's floor at the teacher's own width, which holds its features in superposition too."""
        return float(self._tail_costs()[self._n_held(self.stats.d_model)])

    def kept(self, width: Number) -> Bool[np.ndarray, " feature"]:
        """The features that a student of `width` dimensions holds by Theorem 1."""
        mask = np.zeros(len(self.stats.firing_count), dtype=bool)
        mask[self._by_cost()[: self._n_held(width)]] = True
        return mask

    def lost(self, width: Number) -> Int64[np.ndarray, " lost"]:
        """Indices of the alive features that a student of `width` dimensions loses, the most costly first."""
        return self._by_cost()[self._n_held(width) :]

    def width_for(self, max_loss: Number) -> int:
        """The narrowest student whose Theorem 1 floor is at most `max_loss` (in `unit`), in dimensions, at least 1.

        Raises:
            ValueError: `max_loss` is negative or not a number.
        """
        if not max_loss >= 0:
            raise ValueError(f"max_loss must be at least 0, in {self.unit}, got {max_loss}")
        tails = self._tail_costs()
        needed = int(np.argmax(tails <= max_loss))  # tails fall to 0, so some k always serves
        width = max(1, math.floor(needed / self.capacity))
        return width if self._n_held(width) >= needed else width + 1

    def save(self, path: str | Path) -> Path:
        """Write `floor.json` and the `stats.safetensors` that it stands on into the directory `path`.

        Raises:
            InputError: the directory cannot be written.
        """
        directory = Path(path)
        self.stats.save(directory / STATS_FILE)
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "stats"}
        head = {"format": "tl-distill-floor/floor", "version": 1, "unit": self.unit, "stats": self.stats.digest()}
        found = {**head, **{name: plain(value) for name, value in fields.items()}, "expected": self.expected.tolist()}
        return write_atomically(directory / FLOOR_FILE, json.dumps(found, indent=1, allow_nan=False).encode())

    @classmethod
    def load(cls, path: str | Path) -> "FloorPrediction":
        """Read what `save` wrote into a directory.

        Raises:
            InputError: a file is missing, truncated, foreign, or of another version, or the two do not belong together.
        """
        file = file_in(path, FLOOR_FILE)
        try:
            found: dict[str, Any] = json.loads(file.read_bytes())
            check_format(file, "floor", found.get("format"), found.get("version"))
            stats = FeatureStats.load(file.parent / STATS_FILE)
            if found["stats"] != stats.digest():
                raise ValueError(f"it was not computed from the {STATS_FILE} beside it")  # noqa: TRY301
            return cls(stats=stats, **{f.name: _decode(f.name, found[f.name]) for f in _stored_fields(cls)})
        except InputError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{file} is missing or does not fit ({error}); run tl-floor measure") from error

    def plot(self) -> "go.Figure":
        """Floor against width, as a plotly figure."""
        from tl_distill_floor.present.plots import floor_figure

        return floor_figure(self)

    def _repr_html_(self) -> str:
        from tl_distill_floor.present.terminal import floor_html

        return floor_html(self)

    def _by_cost(self) -> Int64[np.ndarray, " alive"]:
        return by_cost(self.stats.cost, self.stats.alive(self.min_count))

    def _n_held(self, width: Number) -> int:
        if not width > 0:
            raise ValueError(f"width must be a number of dimensions above 0, got {width}")
        return n_held(width, self.capacity, self.n_features)

    def _tail_costs(self) -> Float64[np.ndarray, " ranks"]:
        return tail_costs(self.stats.cost[self._by_cost()])


def _stored_fields(record: type[FloorPrediction]) -> list[dataclasses.Field[Any]]:
    return [f for f in dataclasses.fields(record) if f.name != "stats"]


def plain(value: Any) -> Any:
    """A value as JSON holds it: lists for arrays, None for NaN (a bound that one block of text cannot give)."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _decode(name: str, value: Any) -> Any:
    if name == "widths":
        return np.array(value, dtype=np.int64)
    if name in ("theorem", "independent", "simulated", "interval"):
        return None if value is None else np.array(value, dtype=np.float64)
    if name.endswith("_interval"):
        return tuple(math.nan if bound is None else float(bound) for bound in value)
    return tuple(value) if isinstance(value, list) else value
