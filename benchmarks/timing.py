"""Time functions that run in turn, and read the peak memory of this process."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Timings:
    """Seconds and peak memory of functions that ran in turn."""

    seconds: dict[str, list[float]]
    """For each function, the seconds of every round."""
    peak_mb: dict[str, float]
    """For each function, the largest resident memory of this process over all rounds, in MB."""

    def median(self, name: str) -> float:
        """Return the median seconds of a function."""
        return statistics.median(self.seconds[name])

    def ratio(self, numerator: str, denominator: str) -> float:
        """Return the median, over the rounds, of the ratio of two functions' seconds."""
        pairs = zip(self.seconds[numerator], self.seconds[denominator], strict=True)
        return statistics.median(one / other for one, other in pairs)


def time_in_turn(functions: Mapping[str, Callable[[], object]], n_rounds: int, n_warm_up_rounds: int = 0) -> Timings:
    """Run all functions one after the other in each round, so that a change of the machine's load affects them alike.

    Args:
        functions: what is timed.
        n_rounds: rounds that count.
        n_warm_up_rounds: rounds before them, whose times are discarded.
    """
    timings = Timings({name: [] for name in functions}, dict.fromkeys(functions, 0.0))
    for number in range(n_warm_up_rounds + n_rounds):
        for name, function in functions.items():
            reset_peak_memory()
            started = time.perf_counter()
            function()
            seconds = time.perf_counter() - started
            if number >= n_warm_up_rounds:
                timings.seconds[name].append(seconds)
                timings.peak_mb[name] = max(timings.peak_mb[name], peak_memory_mb())
    return timings


def reset_peak_memory() -> None:
    """Set the peak resident memory of this process to its current memory. Linux only; elsewhere nothing happens."""
    file = Path("/proc/self/clear_refs")
    if file.exists():
        file.write_text("5")


def peak_memory_mb() -> float:
    """Return the peak resident memory of this process in MB since the last reset; 0 where there is no /proc."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0.0
    return int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1]) / 1024
