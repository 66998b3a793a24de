"""Time functions that run in turn, and read the peak memory of this process or of a GPU."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Timings:
    """Seconds and peak memory of functions that ran in turn."""

    seconds: dict[str, list[float]]
    """For each function, the seconds of every round."""
    peak_mb: dict[str, float]
    """For each function, the peak memory over all rounds in MB: resident memory of this process, or memory that torch
    has allocated on a GPU."""

    def median(self, name: str) -> float:
        """Return the median seconds of a function."""
        return statistics.median(self.seconds[name])

    def ratio(self, numerator: str, denominator: str) -> float:
        """Return the median, over the rounds, of the ratio of two functions' seconds."""
        pairs = zip(self.seconds[numerator], self.seconds[denominator], strict=True)
        return statistics.median(one / other for one, other in pairs)


def time_in_turn(
    functions: Mapping[str, Callable[[], object]],
    n_rounds: int,
    n_warm_up_rounds: int = 0,
    device: torch.device | None = None,
    max_seconds: float = float("inf"),
) -> Timings:
    """Run all functions one after the other in each round, so that a change of the machine's load affects them alike.

    Args:
        functions: what is timed.
        n_rounds: rounds that count.
        n_warm_up_rounds: rounds before them, whose times are discarded.
        device: device that the functions run on. The clock is read when a GPU has finished; None for the CPU.
        max_seconds: time after which no further round is started, warm-up included. One round always counts.
    """
    timings = Timings({name: [] for name in functions}, dict.fromkeys(functions, 0.0))
    begun = time.perf_counter()
    for number in range(n_warm_up_rounds + n_rounds):
        if number > n_warm_up_rounds and time.perf_counter() - begun > max_seconds:
            break
        for name, function in functions.items():
            reset_peak_memory(device)
            started = time.perf_counter()
            function()
            _wait_for(device)
            seconds = time.perf_counter() - started
            if number >= n_warm_up_rounds:
                timings.seconds[name].append(seconds)
                timings.peak_mb[name] = max(timings.peak_mb[name], peak_memory_mb(device))
    return timings


def _is_cuda(device: torch.device | None) -> bool:
    """Return whether a device is a GPU of torch.cuda."""
    return device is not None and device.type == "cuda"


def _wait_for(device: torch.device | None) -> None:
    """Wait until a GPU has finished its work; return at once on the CPU."""
    if _is_cuda(device):
        torch.cuda.synchronize(device)


def reset_peak_memory(device: torch.device | None = None) -> None:
    """Set the peak memory to the current memory. On the CPU this works on Linux only; elsewhere nothing happens."""
    if _is_cuda(device):
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return
    file = Path("/proc/self/clear_refs")
    if file.exists():
        file.write_text("5")


def peak_memory_mb(device: torch.device | None = None) -> float:
    """Return the peak memory in MB since the last reset.

    Args:
        device: a GPU, whose memory that torch has allocated is returned. On the CPU it is the resident memory of this
            process; 0 where there is no /proc.
    """
    if _is_cuda(device):
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if not status.exists():
        return 0.0
    return int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1]) / 1024
