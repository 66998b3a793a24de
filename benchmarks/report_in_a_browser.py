"""Size of a report of 30,000 features, and how long headless Chromium takes to open it.

    python benchmarks/report_in_a_browser.py [--features 30000] [--rounds 5] [--run RUN]

The run is made up (costs that fall as a power law, four contexts a feature), or the one named. Opening ends with the
page's load event, once the scripts ran and the figures in sight are drawn. Needs chromium, chromedriver and selenium.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from tl_distill_floor import FeatureStats, FloorPrediction, floor_from_stats
from tl_distill_floor.display.report import report_html
from tl_distill_floor.display.run_parts import run_parts
from tl_distill_floor.results.contexts import N_CONTEXTS, WINDOW, FeatureContexts
from tl_distill_floor.results.feature_stats import BlockSums


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--features", type=int, default=30_000)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--run", type=Path)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = given.run or Path(folder) / "run"
        if given.run is None:
            made_up(given.features).save(run)
        started = time.perf_counter()
        file = Path(folder) / "report.html"
        file.write_text(report_html(run_parts(run)), encoding="utf-8")
        written = time.perf_counter() - started
        print(f"{file.stat().st_size / 1e6:.2f} MB, written in {written:.1f} s")
        loads, plots = opened(file, given.rounds)
    print(f"opened in {statistics.median(loads):.2f} s (median of {len(loads)}; {min(loads):.2f} to {max(loads):.2f})")
    print(f"{plots} figures drawn at once, the others as they come into sight")


def made_up(n: int) -> FloorPrediction:
    random = np.random.default_rng(0)
    n_tokens = 100_000
    cost = np.arange(1.0, n + 1) ** -1.2
    count = np.maximum(1, random.lognormal(np.log(300), 1.5, n)).astype(np.int64).clip(max=n_tokens)
    activation = -np.sort(-random.random((n, N_CONTEXTS)).astype(np.float32) - 0.1, axis=1)
    window = random.integers(0, 4096, (n, N_CONTEXTS, WINDOW)).astype(np.int32)
    contexts = FeatureContexts.of_places(activation, np.tile(np.arange(N_CONTEXTS), (n, 1)), window)
    contexts = contexts.with_promoted(window[:, 0, :5]).with_strings(lambda token: f" word{token}")
    stats = FeatureStats(
        "made-up", "blocks.12.hook_resid_post", "made-up-sae", "made-up text", 1024, n_tokens, 0, count,
        count.astype(float), count * 2.0, np.ones(n), cost * n_tokens, "mse", 4, np.zeros(1024), 8.0, 1.0,
        BlockSums(np.array([n_tokens]), count[None], cost[None] * n_tokens), contexts=contexts,
    )  # fmt: skip
    return floor_from_stats(stats, [64, 128, 256, 512, 1024])


def opened(file: Path, rounds: int) -> tuple[list[float], int]:
    """(seconds to the load event, figures drawn by then), each time in a new browser that has compiled nothing yet."""
    found = [in_a_new_browser(file) for _ in range(rounds)]
    return [seconds for seconds, _ in found], found[-1][1]


def in_a_new_browser(file: Path) -> tuple[float, int]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1200,900"):
        options.add_argument(flag)
    driver: Any = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        driver.get(file.as_uri())
        ends = driver.execute_script("return performance.getEntriesByType('navigation')[0].loadEventEnd")
        plots = driver.execute_script("return document.querySelectorAll('.plot.js-plotly-plot').length")
    finally:
        driver.quit()
    return float(ends) / 1000, int(plots)


if __name__ == "__main__":
    main()
