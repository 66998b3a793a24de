"""The HTML page of a run: what it contains, what it says about missing parts, and how a browser shows it."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.cli import refused, run
from tests.helpers.records import made_head_floor, stats_of
from tests.helpers.type_checks import without_type_checks
from tl_distill_floor import (
    FloorPrediction,
    InputError,
    Probes,
    PromotedTokens,
    StudentResult,
    floor_from_stats,
    write_comparison,
    write_report,
)
from tl_distill_floor.display.report_sections import comparison_html, report_html
from tl_distill_floor.display.run_parts import RunParts
from tl_distill_floor.results.contexts import PEAK, WINDOW, FeatureContexts

SCRIPT = "<script>alert(1)</script>"
BROWSER = all(shutil.which(name) for name in ("chromium", "chromedriver"))


def hostile_contexts(n: int) -> FeatureContexts:
    """Return contexts in which every feature fires on a script, between an end tag and control characters."""
    window = np.full((n, 4, WINDOW), -1, dtype=np.int32)
    window[:, 0, PEAK - 1 : PEAK + 2] = (1, 2, 3)
    activation = np.zeros((n, 4), dtype=np.float32)
    activation[:, 0] = 1.0
    sequence = np.where(activation > 0, 0, -1).astype(np.int64)
    contexts = FeatureContexts.from_arrays(activation, sequence, window)
    contexts = contexts.with_promoted(np.full((n, 1), 2, dtype=np.int32))
    return contexts.with_strings({1: "</p></script>", 2: SCRIPT, 3: "\x1b[31m\x07"}.__getitem__)


@pytest.fixture(scope="module")
def complete(distilled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run with students and a calibration, whose features fire on hostile tokens."""
    directory = tmp_path_factory.mktemp("reports") / "run <b>&"
    shutil.copytree(distilled, directory)
    assert run("calibrate", directory).exit_code == 0
    floor = FloorPrediction.load(directory)
    stats = dataclasses.replace(floor.stats, contexts=hostile_contexts(len(floor.stats.cost)), neuronpedia_id="a/b")
    stats.save(directory / "stats.safetensors")
    return directory


def with_probes(directory: Path, probes: Probes) -> Path:
    """Save probes that belong to the prediction of a run; return the run directory."""
    digest = FloorPrediction.load(directory).stats.digest()
    dataclasses.replace(probes, stats=digest, features=(probes.features[0], probes.features[0])).save(directory)
    return directory


def test_page_contains_every_part(complete: Path, probes: Probes) -> None:
    result = run("report", with_probes(complete, probes), "--width", 8)
    assert result.exit_code == 0, result.output
    page = (complete / "report.html").read_text(encoding="utf-8")
    for words in (
        "A student of", "dimensions wide is expected to lose", "Compared with 3 trained students",
        "Feature floor (nats/token)",
        "Learning curves", "Predicted floors and trained students", "Labels that linear probes still predict",
        "Features decoded from each model", "Cost of each feature", "Capacity of each feature",
        "Alive features against tokens", "nats per token), fires on", "Intervals are 95 %",
        "unexplained", "arXiv:2604.04037", "https://www.neuronpedia.org/a/b/",
        f"represents every feature, is {FloorPrediction.load(complete).critical_width:,.1f} dimensions.",
    ):  # fmt: skip
        assert words in page, words
    assert SCRIPT not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "\x1b" not in page
    assert "http://" not in page.split("<script>")[0]
    assert page.count("<script>") == 2


def test_page_shows_promoted_tokens_and_names_missing_ones(measured: tuple[Path, Path, Path], tmp_path: Path) -> None:
    directory = tmp_path / "run"
    shutil.copytree(measured[0], directory, ignore=shutil.ignore_patterns("promoted.json"))
    write_report(directory, top=3)
    page = (directory / "report.html").read_text(encoding="utf-8")
    note = "The promoted tokens of 3 of these features were not computed; add --promoted"
    assert note in " ".join(page.split())
    assert "<p>promotes" not in page
    result = run("report", directory, "--top", 3, "--promoted")
    assert result.exit_code == 0, result.output
    page = (directory / "report.html").read_text(encoding="utf-8")
    assert "were not computed" not in page
    assert page.count("<p>promotes") == 3
    tokens, of_measurement = PromotedTokens.load(directory).tokens, PromotedTokens.load(measured[0]).tokens
    assert len(tokens) == 3
    assert all(tokens[feature] == of_measurement[feature] for feature in tokens)


def test_comparison_of_two_runs(complete: Path, measured: tuple[Path, Path, Path], tmp_path: Path) -> None:
    result = run("report", "--compare", complete, measured[0], "--out", tmp_path / "both.html")
    assert result.exit_code == 0, result.output
    page = (tmp_path / "both.html").read_text(encoding="utf-8")
    for words in (
        "compared",
        "Comparison",
        "Critical width of",
        "By Theorem 1 the features need",
        "run &lt;b&gt;&amp;",
    ):
        assert words in page, words
    assert "leave out --compare" in refused(run("report", "--compare", complete))
    assert "add --compare" in refused(run("report", complete, complete))
    assert "there is no run at" in refused(run("report", "--compare", complete, tmp_path / "nowhere"))
    FloorPrediction.from_head(made_head_floor()).save(tmp_path / "head")
    assert "needs two runs that were measured with an SAE" in refused(
        run("report", "--compare", complete, tmp_path / "head", "--out", tmp_path / "both.html")
    )
    assert "no lost features are listed; leave out --width" in refused(run("report", tmp_path / "head", "--width", 8))
    options = (complete, measured[0], tmp_path / "head", "--out", tmp_path / "both.html")
    assert "head was measured without an SAE" in " ".join(run("report", "--compare", *options).stdout.split())
    assert "head was measured without an SAE" in (tmp_path / "both.html").read_text(encoding="utf-8")
    shutil.copytree(complete, tmp_path / "without")
    (tmp_path / "without" / "floor.json").write_text("{")
    assert "without has no prediction to compare (" in refused(
        run("report", "--compare", complete, tmp_path / "without")
    )


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("floor.json", "This run has no prediction; make one with tl-floor measure."),
        ("students", "This run has no students; train some with tl-floor distill."),
        ("probes.json", "This run has no probes; fit some with tl-floor probe."),
        ("calibration.json", "The prediction was not fitted to them; run tl-floor calibrate."),
        ("stats.safetensors", "Not read:"),
        ("simulated.safetensors", "Not read:"),
    ],
)
def test_page_names_a_missing_part_and_shows_the_rest(
    complete: Path, probes: Probes, tmp_path: Path, part: str, expected: str
) -> None:
    shutil.copytree(with_probes(complete, probes), tmp_path / "run")
    missing = tmp_path / "run" / part
    shutil.rmtree(missing) if missing.is_dir() else missing.unlink()
    result = run("report", tmp_path / "run")
    assert result.exit_code == 0, result.output
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert expected in page
    assert "How to cite" in page
    assert ("Learning curves" in page) == (part != "students")


def test_a_named_directory_without_students_is_refused(complete: Path) -> None:
    assert "nowhere holds no students" in refused(run("report", complete, "--students", "nowhere"))


def test_page_names_damaged_parts(complete: Path, probes: Probes, tmp_path: Path) -> None:
    shutil.copytree(with_probes(complete, probes), tmp_path / "run")
    (tmp_path / "run" / "probes.json").write_text("{")
    (tmp_path / "run" / "calibration.json").write_text("{")
    (tmp_path / "run" / "students" / "width8" / "student.json").write_text("[]")
    result = run("report", tmp_path / "run")
    assert result.exit_code == 0, result.output
    printed = "".join(result.stdout.split())  # rich breaks long paths across lines
    assert printed.count("leftout:") == 3
    assert "probes.json" in printed
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert page.count("Not read:") == 3
    assert "Feature floor (nats/token)" in page
    assert "width16" in page
    assert "there is no run at" in refused(run("report", tmp_path / "empty"))


def test_page_names_parts_of_another_prediction(complete: Path, probes: Probes, tmp_path: Path) -> None:
    shutil.copytree(complete, tmp_path / "run")
    stored = json.loads((tmp_path / "run" / "calibration.json").read_bytes())
    (tmp_path / "run" / "calibration.json").write_text(json.dumps(stored | {"stats": "another"}))
    probes.save(tmp_path / "run")
    assert run("report", tmp_path / "run").exit_code == 0
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    for file in ("calibration.json", "probes.json"):
        assert f"{file} is of another prediction" in page
    assert "Labels that linear probes still predict" not in page


def test_page_escapes_names_in_tables_and_figures(probes: Probes) -> None:
    name = "a\x1b[31m\u202e<a href='https://evil.example'>z</a>"
    stats = dataclasses.replace(stats_of(np.arange(1.0, 41.0), rate=0.02), model_name=name, sae_name=name)
    floor = floor_from_stats(stats, [1, 2])
    student = StudentResult(name, name, 8, 2, 10, (10, 20), (0.5, 0.4), 0.1, (0.0, 0.2), "under-trained", 10)
    results = tuple(dataclasses.replace(result, task=name) for result in probes.results)
    parts = RunParts(name, floor, (student,), dataclasses.replace(probes, results=results))
    for page in (report_html(parts), comparison_html([parts, parts])):
        content = page.split("<script>")[0]
        assert not {"\x1b", "\u202e"} & set(content)
        assert "<a href='https" not in content
        assert "\\u003ca href" not in content  # plotly interprets markup in labels


def test_page_of_thirty_thousand_features_is_below_seven_megabytes(tmp_path: Path) -> None:
    n = 30_000
    cost = np.arange(1.0, n + 1) ** -1.2
    stats = stats_of(cost, rate=0.01, n_tokens=10_000, contexts=hostile_contexts(n))
    floor_from_stats(stats, [256, 1024]).save(tmp_path)
    assert run("report", tmp_path, "--top", 40).exit_code == 0
    assert 4e6 < (tmp_path / "report.html").stat().st_size < 7e6


def test_page_and_figures_can_be_written_elsewhere(
    complete: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Write the report of a run that must not change."""
    monkeypatch.setattr("plotly.graph_objects.Figure.to_image", lambda *_args, **_options: b"<svg/>")
    before = sorted(complete.rglob("*"))
    result = run("report", complete, "--out", tmp_path / "elsewhere" / "page.html", "--figures", "svg")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "elsewhere" / "page.html").exists()
    assert len(list((tmp_path / "elsewhere" / "figures").glob("*.svg"))) > 2
    assert sorted(complete.rglob("*")) == before


def test_write_report_returns_the_files_and_the_unreadable_parts(
    complete: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plotly.graph_objects.Figure.to_image", lambda *_args, **_options: b"<svg/>")
    shutil.copytree(complete, tmp_path / "run")
    (tmp_path / "run" / "probes.json").write_text("{")
    report = write_report(tmp_path / "run", width=8, top=2, figures="svg")
    assert report.path == tmp_path / "run" / "report.html"
    assert Path(report).read_text(encoding="utf-8").count('class="feature"') == 2
    assert {file.parent for file in report.figures} == {tmp_path / "run" / "figures"}
    assert {file.name for file in report.figures} == {
        "floors.svg", "costs.svg", "capacities.svg", "growth.svg", "learning-curves.svg", "predicted-and-reached.svg",
    }  # fmt: skip
    assert all(file.is_file() for file in report.figures)
    (reason,) = report.unreadable
    assert "probes.json" in reason
    assert write_report(str(complete), tmp_path / "page.html", students=tmp_path / "run").figures == ()


def test_write_comparison_returns_the_files(complete: Path, measured: tuple[Path, Path, Path], tmp_path: Path) -> None:
    comparison = write_comparison([complete, str(measured[0])], tmp_path / "both.html")
    assert comparison.path.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert (comparison.figures, comparison.unreadable) == ((), ())


def test_reports_reject_bad_arguments(complete: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no run at"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(InputError, match="the width must be at least 1"):
        write_report(complete, tmp_path / "page.html", width=0)
    with pytest.raises(InputError, match="must be at least 1, got 0"):
        write_report(complete, tmp_path / "page.html", top=0)
    with pytest.raises(InputError, match="a comparison needs two or more runs, got 1"):
        write_comparison([complete], tmp_path / "page.html")
    for write in (lambda: write_report(complete, figures="gif"), lambda: write_comparison([complete], figures="gif")):
        with pytest.raises(InputError, match="figures must be one of svg, png, pdf, got 'gif'"), without_type_checks():
            write()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Start headless Chromium."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1200,900"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.mark.slow
@pytest.mark.skipif(not BROWSER, reason="needs chromium and chromedriver")
def test_browser_shows_the_page_without_errors(complete: Path, probes: Probes, browser: Any) -> None:
    from axe_core_python.selenium import Axe
    from selenium.webdriver.support.wait import WebDriverWait

    assert run("report", with_probes(complete, probes), "--width", 8).exit_code == 0
    browser.get((complete / "report.html").as_uri())
    browser.execute_script("window.dispatchEvent(new Event('beforeprint'))")
    n_plots, n_drawn = browser.execute_script(
        "return [document.querySelectorAll('.plot').length, document.querySelectorAll('.plot.js-plotly-plot').length]"
    )
    assert n_plots == n_drawn == 8
    marks = browser.execute_script("return [...document.querySelectorAll('mark')].map(mark => mark.textContent)")
    assert marks
    assert set(marks) == {SCRIPT}
    assert browser.get_log("browser") == []
    assert Axe().run(browser)["violations"] == []
    browser.set_window_size(390, 800)
    WebDriverWait(browser, 10).until(  # figures follow the window with a delay
        lambda driver: driver.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    )
