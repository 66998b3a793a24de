"""The page of a run: what it holds and what it says is absent, and how a browser shows it."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tests.helpers.cli import refused, run
from tests.helpers.records import stats_of
from tl_distill_floor import FloorPrediction, Probes, StudentResult, floor_from_stats
from tl_distill_floor.display.html import fragment
from tl_distill_floor.display.report import comparison_html, report_html
from tl_distill_floor.display.run_parts import RunParts
from tl_distill_floor.results.contexts import PEAK, WINDOW, FeatureContexts

SCRIPT = "<script>alert(1)</script>"
BROWSER = all(shutil.which(name) for name in ("chromium", "chromedriver"))


def hostile_contexts(n: int) -> FeatureContexts:
    """Every feature fires on a token that is a script, between one that ends an element and one that rings a bell."""
    window = np.full((n, 4, WINDOW), -1, dtype=np.int32)
    window[:, 0, PEAK - 1 : PEAK + 2] = (1, 2, 3)
    activation = np.zeros((n, 4), dtype=np.float32)
    activation[:, 0] = 1.0
    sequence = np.where(activation > 0, 0, -1).astype(np.int64)
    made = FeatureContexts.of_places(activation, sequence, window).with_promoted(np.full((n, 1), 2, dtype=np.int32))
    return made.with_strings({1: "</p></script>", 2: SCRIPT, 3: "\x1b[31m\x07"}.__getitem__)


@pytest.fixture(scope="module")
def complete(distilled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with everything in it, whose features fire on hostile tokens."""
    directory = tmp_path_factory.mktemp("reports") / "run <b>&"
    shutil.copytree(distilled, directory)
    assert run("calibrate", directory).exit_code == 0
    floor = FloorPrediction.load(directory)
    stats = dataclasses.replace(floor.stats, contexts=hostile_contexts(len(floor.stats.cost)), neuronpedia_id="a/b")
    stats.save(directory / "stats.safetensors")
    return directory


def with_probes(directory: Path, probes: Probes) -> Path:
    digest = FloorPrediction.load(directory).stats.digest()
    dataclasses.replace(probes, stats=digest, features=(probes.features[0], probes.features[0])).save(directory)
    return directory


def test_the_page_holds_every_part(complete: Path, probes: Probes) -> None:
    result = run("report", with_probes(complete, probes), "--width", 8)
    assert result.exit_code == 0, result.output
    page = (complete / "report.html").read_text(encoding="utf-8")
    for words in (
        "A student of", "dimensions wide is expected to lose", "Held against 3 trained students",
        "Loss floor (nats/token)",
        "Learning curves", "Predicted and reached", "What a line still reads off", "Features read off each model",
        "What each feature is worth", "Capacity given to each feature", "Features found in the text", "fires on",
        "unexplained", "arXiv:2604.04037", "https://www.neuronpedia.org/a/b/",
    ):  # fmt: skip
        assert words in page, words
    assert SCRIPT not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "\x1b" not in page
    assert "http://" not in page.split("<script>")[0]
    assert page.count("<script>") == 2


def test_two_runs_side_by_side(complete: Path, measured: tuple[Path, Path, Path], tmp_path: Path) -> None:
    result = run("report", "--compare", complete, measured[0], "--out", tmp_path / "both.html")
    assert result.exit_code == 0, result.output
    page = (tmp_path / "both.html").read_text(encoding="utf-8")
    for words in (
        "compared",
        "Side by side",
        "Critical width of",
        "By Theorem 1 the features need",
        "run &lt;b&gt;&amp;",
    ):
        assert words in page, words
    assert "1 runs given" in refused(run("report", "--compare", complete))
    assert "2 runs given" in refused(run("report", complete, complete))
    assert "there is no run at" in refused(run("report", "--compare", complete, tmp_path / "nowhere"))
    shutil.copytree(complete, tmp_path / "without")
    (tmp_path / "without" / "floor.json").write_text("{")
    assert "without holds no prediction to compare (" in refused(
        run("report", "--compare", complete, tmp_path / "without")
    )
    assert "belong to the report of one run" in refused(run("report", "--compare", complete, complete, "--width", 8))


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ("floor.json", "This run holds no prediction. tl-floor measure makes them."),
        ("students", "This run holds no students. tl-floor distill makes them."),
        ("probes.json", "This run holds no probes. tl-floor probe makes them."),
        ("calibration.json", "No line was fitted: tl-floor calibrate does."),
        ("stats.safetensors", "Not read:"),
        ("simulated.safetensors", "Not read:"),
    ],
)
def test_what_is_absent_is_said_and_the_rest_is_shown(
    complete: Path, probes: Probes, tmp_path: Path, part: str, says: str
) -> None:
    shutil.copytree(with_probes(complete, probes), tmp_path / "run")
    gone = tmp_path / "run" / part
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    result = run("report", tmp_path / "run")
    assert result.exit_code == 0, result.output
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert says in page
    assert "How to cite" in page
    assert ("Learning curves" in page) == (part != "students")


def test_damaged_parts_are_named(complete: Path, probes: Probes, tmp_path: Path) -> None:
    shutil.copytree(with_probes(complete, probes), tmp_path / "run")
    (tmp_path / "run" / "probes.json").write_text("{")
    (tmp_path / "run" / "calibration.json").write_text("{")
    (tmp_path / "run" / "students" / "width8" / "student.json").write_text("[]")
    result = run("report", tmp_path / "run")
    assert result.exit_code == 0, result.output
    shown = "".join(result.stdout.split())  # a long path is broken wherever the line ends
    assert shown.count("leftout:") == 3
    assert "probes.json" in shown
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert page.count("Not read:") == 3
    assert "Loss floor (nats/token)" in page
    assert "width16" in page
    assert "there is no run at" in refused(run("report", tmp_path / "empty"))
    assert "the width must be at least 1" in refused(run("report", tmp_path / "run", "--width", 0))


def test_a_calibration_of_another_prediction_is_named(complete: Path, tmp_path: Path) -> None:
    shutil.copytree(complete, tmp_path / "run")
    stored = json.loads((tmp_path / "run" / "calibration.json").read_bytes())
    (tmp_path / "run" / "calibration.json").write_text(json.dumps(stored | {"stats": "another"}))
    assert run("report", tmp_path / "run").exit_code == 0
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "calibration.json is of another prediction" in page


def test_probes_of_another_prediction_are_named(complete: Path, probes: Probes, tmp_path: Path) -> None:
    shutil.copytree(complete, tmp_path / "run")
    probes.save(tmp_path / "run")
    assert run("report", tmp_path / "run").exit_code == 0
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "probes.json is of another prediction" in page
    assert "What a line still reads off" not in page


def test_names_are_no_markup_in_figures_and_no_signs_of_control(probes: Probes) -> None:
    name = "a\x1b[31m\u202e<a href='https://evil.example'>z</a>"
    stats = dataclasses.replace(stats_of(np.arange(1.0, 41.0), rate=0.02), model_name=name, sae_name=name)
    floor = floor_from_stats(stats, [1, 2])
    student = StudentResult(name, name, 8, 2, 10, (10, 20), (0.5, 0.4), 0.1, (0.0, 0.2), "under-trained", 10)
    found = tuple(dataclasses.replace(result, task=name) for result in probes.results)
    parts = RunParts(name, floor, (student,), dataclasses.replace(probes, results=found))
    for page in (report_html(parts), comparison_html([parts, parts])):
        own = page.split("<script>")[0]
        assert not {"\x1b", "\u202e"} & set(own)
        assert "<a href='https" not in own
        assert "\\u003ca href" not in own  # plotly reads markup in what it draws


def test_thirty_thousand_features_fit_into_seven_megabytes(tmp_path: Path) -> None:
    n = 30_000
    cost = np.arange(1.0, n + 1) ** -1.2
    stats = stats_of(cost, rate=0.01, n_tokens=10_000, contexts=hostile_contexts(n))
    floor_from_stats(stats, [256, 1024]).save(tmp_path)
    assert run("report", tmp_path, "--top", 40).exit_code == 0
    assert 4e6 < (tmp_path / "report.html").stat().st_size < 7e6


def test_figures_lie_beside_the_page(complete: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a run that may not be written into, say."""
    monkeypatch.setattr("plotly.graph_objects.Figure.to_image", lambda *_given, **_options: b"<svg/>")
    before = sorted(complete.rglob("*"))
    result = run("report", complete, "--out", tmp_path / "elsewhere" / "page.html", "--figures", "svg")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "elsewhere" / "page.html").exists()
    assert len(list((tmp_path / "elsewhere" / "figures").glob("*.svg"))) > 2
    assert sorted(complete.rglob("*")) == before


def test_views_become_html() -> None:
    table = Table(title="<i>")
    table.add_column("a & b")
    table.add_column("", justify="right")
    table.add_row("<b>", Text("\x1b[0m"))
    html = fragment(Group(table, Text("! be <careful>"), Text(), "plain"))
    assert "<caption>&lt;i&gt;</caption>" in html
    assert '<th scope="col">a &amp; b</th><td class="number"></td>' in html
    assert '<th scope="row">&lt;b&gt;</th><td class="number">�[0m</td>' in html
    assert '<p class="warning">! be &lt;careful&gt;</p>' in html
    assert html.endswith("<p>plain</p>")
    with pytest.raises(TypeError, match="no HTML for Panel"):
        fragment(Panel("a"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1200,900"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.mark.skipif(not BROWSER, reason="needs chromium and chromedriver")
def test_a_browser_shows_the_page(complete: Path, probes: Probes, browser: Any) -> None:
    from axe_core_python.selenium import Axe
    from selenium.webdriver.support.wait import WebDriverWait

    assert run("report", with_probes(complete, probes), "--width", 8).exit_code == 0
    browser.get((complete / "report.html").as_uri())
    browser.execute_script("window.dispatchEvent(new Event('beforeprint'))")
    n_places, n_drawn = browser.execute_script(
        "return [document.querySelectorAll('.plot').length, document.querySelectorAll('.plot.js-plotly-plot').length]"
    )
    assert n_places == n_drawn == 8
    marks = browser.execute_script("return [...document.querySelectorAll('mark')].map(mark => mark.textContent)")
    assert marks
    assert set(marks) == {SCRIPT}
    assert browser.get_log("browser") == []
    assert Axe().run(browser)["violations"] == []
    browser.set_window_size(390, 800)
    WebDriverWait(browser, 10).until(  # figures follow the window a moment later
        lambda shown: shown.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    )
