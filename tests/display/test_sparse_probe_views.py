"""Sentences, tables and figures of k-sparse probes."""

import dataclasses
import io
from pathlib import Path

import numpy as np
from rich.console import Console

from tests.helpers.probes import concept_scores, sparse_probes
from tests.helpers.records import stats_of
from tl_distill_floor import floor_from_stats
from tl_distill_floor.display.report_sections import report_html
from tl_distill_floor.display.run_parts import load_run_parts
from tl_distill_floor.display.sparse_probe_views import concept_sentence, sparse_probes_figure, sparse_probes_table

COLD, KEPT = sparse_probes().concepts


def test_a_sentence_names_the_features_and_what_a_width_loses() -> None:
    assert concept_sentence(COLD) == (
        "weather: cold (90 texts of 30 documents, 40% with it) rests on features 12 ('snow'), 71 (without '[b]sun'):"
        " AUROC 0.86, dense 0.96. A student of width 8 is expected to lose 1 of 2 (12), which leaves the sparse probe"
        " an AUROC of 0.61; the probe of its student scores 0.82 (teacher 0.96)."
    )


def test_a_sentence_without_students_gives_a_forecast() -> None:
    assert concept_sentence(KEPT).endswith(
        "A student of width 16 is expected to keep them all; the forecast for its probe is 0.92 by the features kept"
        " (teacher 0.96)."
    )
    forecast = dataclasses.replace(COLD.widths[0], students=())
    assert concept_sentence(dataclasses.replace(COLD, widths=(forecast,))).endswith(
        "the forecast for its probe is 0.80 by the bottleneck (teacher 0.96)."
    )


def test_a_sentence_says_what_the_controls_reach() -> None:
    shuffled = tuple(dataclasses.replace(at, shuffled=concept_scores(0.9, 0.9)) for at in COLD.at)
    assert (
        "dense 0.96. This may be chance: shuffled labels reach 0.90; more documents would tell. A student"
        in concept_sentence(dataclasses.replace(COLD, at=shuffled))
    )
    random = tuple(dataclasses.replace(at, random=concept_scores(0.9, 0.9)) for at in COLD.at)
    assert "Random features do as well, up to 0.90." in concept_sentence(dataclasses.replace(COLD, at=random))


def test_the_table_fits_a_terminal_of_80_columns() -> None:
    console = Console(width=80, file=io.StringIO())
    console.print(sparse_probes_table(sparse_probes()))
    printed = console.file.getvalue()
    for expected in ("0.86", "0.60", "0.50", "0.75", "1 of 2", "0 of 2", "! careful", "[b]sun"):
        assert expected in printed
    assert "…" not in printed
    assert "students' AUROC: remaining 0.210, kept 0.080, bottleneck 0.020." in " ".join(printed.split())
    without = tuple(dataclasses.replace(concept, widths=concept.widths[-1:]) for concept in (COLD, KEPT))
    console.print(sparse_probes_table(dataclasses.replace(sparse_probes(), concepts=without)))
    assert "No student was probed, so these are forecasts." in " ".join(console.file.getvalue().split())


def test_the_figure_has_the_probes_and_their_controls() -> None:
    selected, random, shuffled = sparse_probes_figure(sparse_probes()).data[:3]
    assert list(selected.x) == ["1", "2", "3", "dense"]
    assert list(selected.y) == [0.71, 0.86, 0.87, 0.96]
    assert list(random.y) == [0.55] * 3
    assert list(shuffled.y) == [0.55] * 3
    assert [each.showlegend for each in (selected, random, shuffled)] == [True, False, False]


def test_the_report_shows_the_probes_of_its_own_prediction(tmp_path: Path) -> None:
    sparse_probes().save(tmp_path)
    page = report_html(load_run_parts(tmp_path))
    assert "weather: cold (90 texts of 30 documents, 40% with it) rests on features 12" in page
    assert "figure-sparse-probes" in page
    floor = floor_from_stats(stats_of(np.array([5.0, 1.0, 9.0, 4.0]), rate=0.05), [1, 2])
    floor.save(tmp_path)
    parts = load_run_parts(tmp_path)
    assert parts.sparse_probes is None
    assert parts.unreadable == (
        f"{tmp_path / 'sparse_probes.json'} is of another prediction; run tl-floor probe --sparse again",
    )
    dataclasses.replace(sparse_probes(), stats=floor.stats.digest()).save(tmp_path)
    assert load_run_parts(tmp_path).sparse_probes is not None
