"""Measure the size of a report of 30,000 features, and the time that headless Chromium takes to open it.

    python benchmarks/report_in_a_browser.py [--features 30000] [--rounds 5] [--run RUN]

The report is made from synthetic statistics (costs that follow a power law, four contexts per feature), or from RUN.
The time ends with the page's load event, when all scripts have run and the visible figures are drawn. Needs chromium,
chromedriver and selenium.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from synthetic_data import prediction_with_contexts

from tl_distill_floor.display.report_sections import report_html
from tl_distill_floor.display.run_parts import load_run_parts


def main() -> None:
    """Write a report, open it several times, and print sizes and times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=30_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--run", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        run = options.run or Path(directory) / "run"
        if options.run is None:
            prediction_with_contexts(options.features).save(run)
        started = time.perf_counter()
        file = Path(directory) / "report.html"
        file.write_text(report_html(load_run_parts(run)), encoding="utf-8")
        seconds = time.perf_counter() - started
        print(f"{file.stat().st_size / 1e6:.2f} MB, written in {seconds:.1f} s")
        # A new browser in every round, which has no compiled scripts in its cache.
        rounds = [open_in_new_browser(file) for _ in range(options.rounds)]
    loads = [load for load, _ in rounds]
    print(f"opened in {statistics.median(loads):.2f} s (median of {len(loads)}; {min(loads):.2f} to {max(loads):.2f})")
    print(f"{rounds[-1][1]} figures drawn at once, the others when they are scrolled into view")


def open_in_new_browser(file: Path) -> tuple[float, int]:
    """Return (seconds until the load event, number of figures drawn by then)."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1200,900"):
        options.add_argument(flag)
    driver: Any = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        driver.get(file.as_uri())
        milliseconds = driver.execute_script("return performance.getEntriesByType('navigation')[0].loadEventEnd")
        n_figures = driver.execute_script("return document.querySelectorAll('.plot.js-plotly-plot').length")
    finally:
        driver.quit()
    return float(milliseconds) / 1000, int(n_figures)


if __name__ == "__main__":
    main()
