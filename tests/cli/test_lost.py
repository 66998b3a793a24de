"""Test `tl-floor lost` in this process, on a synthetic run."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from tests.helpers.cli import refused, run
from tests.helpers.records import stats_of
from tl_distill_floor import FloorPrediction, PromotedTokens, floor_from_stats
from tl_distill_floor.display.escaping import escape_control
from tl_distill_floor.display.lost_feature_views import ContextCell
from tl_distill_floor.predicting.lost_features import one_feature, survives_from
from tl_distill_floor.results.contexts import N_CONTEXTS, WINDOW, FeatureContexts
from tl_distill_floor.results.feature_stats import FeatureStats
from tl_distill_floor.results.lost_features import FeatureContext
from tl_distill_floor.results.simulation import Simulation

N = 60
COST = 100.0 / np.arange(1, N + 1)
WORDS = dict(enumerate([" the", " cold", "\n", "[bold]x[/bold]", "\x1b[31mred", " 雪が降る", " snow", "\u202e", ""], 1))


def contexts() -> FeatureContexts:
    """Return contexts in which feature f fires once on each of 1 + f % 4 sequences, and promotes three tokens."""
    result = FeatureContexts.empty(N)
    for feature in range(N):
        for k in range(1 + feature % N_CONTEXTS):
            result.activation[feature, k] = 9.0 - k
            result.sequence[feature, k] = k
            result.window[feature, k] = (np.arange(WINDOW) + feature) % len(WORDS) + 1
            result.window[feature, k, : 3 * k] = -1
    promoted = np.tile(np.array([2, 4, 5], dtype=np.int32), (N, 1))
    return result.with_promoted(promoted).with_strings(WORDS.__getitem__)


def stats(**fields: Any) -> FeatureStats:
    """Return statistics of 60 alive features, whose costs fall with the index."""
    return stats_of(COST, rate=0.05, **({"contexts": contexts(), "neuronpedia_id": "gpt2-small/8-res-jb"} | fields))


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FloorPrediction:
    """Save a prediction in runs/made of the working directory."""
    monkeypatch.chdir(tmp_path)
    floor = floor_from_stats(stats(), [2, 4, 8])
    floor.save("runs/made")
    return floor


@pytest.mark.parametrize("columns", ["80", "120"])
def test_the_table_lists_the_lost_features(
    saved: FloorPrediction, columns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    result = run("lost", "runs/made", "--width", 4, "--top", 5)
    assert result.exit_code == 0, result.output
    lost = saved.lost(4)
    share = COST[lost].sum() / COST.sum()
    output = " ".join(result.stdout.split())
    assert f"to lose {len(lost)} of 60 alive features, which have {share:.1%} of the cost" in output
    assert "5 most costly; cost in squared error per token" in output
    assert all(cell_len(line) <= int(columns) for line in result.stdout.splitlines())
    assert f"https://www.neuronpedia.org/gpt2-small/8-res-jb/{lost[0]}" in output
    rows = [line.split() for line in result.stdout.splitlines() if "«" in line and "fires" not in line]
    assert [int(row[0]) for row in rows] == (lost[:5] + 1).tolist()  # costs fall with the index
    assert [int(row[1]) for row in rows] == lost[:5].tolist()


def test_control_characters_of_tokens_are_escaped(saved: FloorPrediction, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for options in (("--width", 2, "--top", 60), ("--feature", 3)):
        out = run("lost", "runs/made", *options).stdout
        assert not set(out) & {"\x1b", "\u202e", "\r", "\t"}
        assert "[bold]x[/bold]" in out  # not read as markup
        assert "⏎" in out
        assert "雪が降る" in out


def test_json_lists_all_lost_features_and_describes_the_top(saved: FloorPrediction) -> None:
    result = run("lost", "runs/made", "--width", 4, "--top", 2, "--json")
    assert result.stderr == ""
    printed = json.loads(result.stdout)
    lost = saved.lost(4).tolist()
    assert printed["lost"] == lost
    assert printed["n_lost"] == len(lost)
    assert (printed["width"], printed["n_features"], printed["unit"], printed["model"]) == (4, 60, "mse", "made")
    assert printed["lost_cost_share"] == pytest.approx(COST[lost].sum() / COST.sum())
    first, contexts_of = printed["features"][0], stats().contexts
    assert len(printed["features"]) == 2
    assert contexts_of is not None
    assert (first["feature"], first["rank"], first["kept"]) == (lost[0], lost[0] + 1, False)
    assert first["cost"] == pytest.approx(COST[lost[0]])
    assert first["firing_rate"] == 0.05
    assert first["lost_share"] == pytest.approx(saved.lost_share(4)[lost[0]])
    assert len(first["contexts"]) == 1 + lost[0] % N_CONTEXTS
    before, peak, after = contexts_of.text(lost[0], 0)
    assert first["contexts"][0] == {"activation": 9.0, "before": before, "peak": peak, "after": after}
    assert first["promoted"] == [" cold", "[bold]x[/bold]", "\x1b[31mred"]
    assert first["neuronpedia"] == f"https://www.neuronpedia.org/gpt2-small/8-res-jb/{lost[0]}"


def test_the_default_width_is_the_narrowest_of_the_prediction(saved: FloorPrediction) -> None:
    assert run("lost", "runs/made", "--json").stdout == run("lost", "runs/made", "--json", "--width", 2).stdout


def test_a_width_that_keeps_all_features(saved: FloorPrediction) -> None:
    result = run("lost", "runs/made", "--width", 60)
    assert result.stdout == "A student of width 60 is expected to keep all 60 alive features.\n"
    printed = json.loads(run("lost", "runs/made", "--width", 60, "--json").stdout)
    assert (printed["lost"], printed["features"], printed["lost_cost_share"]) == ([], [], 0.0)


def test_describes_one_feature(saved: FloorPrediction) -> None:
    result = run("lost", "runs/made", "--feature", 3)
    assert result.exit_code == 0, result.output
    survives = one_feature(saved, 3, None).survives_from
    for part in ("4 of 60 alive features", f"from width {survives} on", "5% of the tokens", "8-res-jb/3"):
        assert part in result.stdout
    assert result.stdout.count("«") == N_CONTEXTS
    printed = json.loads(run("lost", "runs/made", "--feature", 3, "--json").stdout)
    assert [at["width"] for at in printed["widths"]] == [2, 4, 8]
    assert [at["kept"] for at in printed["widths"]] == [bool(saved.kept(width)[3]) for width in (2, 4, 8)]
    assert (printed["survives_from"], printed["widest"], printed["feature"], len(printed["contexts"])) == (
        survives,
        16,
        3,
        4,
    )
    at_five = json.loads(run("lost", "runs/made", "--feature", 3, "--width", 5, "--json").stdout)
    assert [at["width"] for at in at_five["widths"]] == [5]


@pytest.mark.parametrize("feature", [0, 3, 10, 40, 59])
def test_survives_from_matches_a_search_over_all_widths(feature: int) -> None:
    floor = floor_from_stats(stats(), [2, 4, 8])
    kept = [bool(floor.kept(width)[feature]) for width in range(1, 17)]
    expected = next((w for w in range(1, 17) if all(kept[w - 1 :])), None)
    assert survives_from(floor, feature, 16) == expected


def test_a_feature_that_is_lost_again_survives_from_the_last_width() -> None:
    """Keep the feature at width 2, lose it at 4, keep it at 8.

    The lost share is linear in log width, so the feature loses half of its cost at √(4 · 8) = 5.7.
    """
    lost = np.tile(COST, (3, 1))
    lost[:, 0] = [0.0, 100.0, 0.0]  # of feature 0, whose cost is 100; predicting its mean loses 95
    simulation = Simulation(
        widths=np.array([2, 4, 8]), floor=lost.sum(1, keepdims=True), reached=lost.sum(1, keepdims=True),
        standard_error=np.zeros(3), lost_cost=lost, on_training_text=lost.sum(1, keepdims=True),
        held_out_sequences=100.0, steps=10,
    )  # fmt: skip
    floor = floor_from_stats(stats(), [2, 4, 8], simulation=simulation)
    assert [bool(floor.kept(width)[0]) for width in (2, 4, 5, 6, 7, 8)] == [True, False, False, True, True, True]
    assert survives_from(floor, 0, 8) == 6


def test_a_feature_that_is_always_or_never_kept(saved: FloorPrediction) -> None:
    assert (one_feature(saved, 0, None).survives_from, one_feature(saved, 59, None).survives_from) == (1, None)
    assert "at every width" in run("lost", "runs/made", "--feature", 0).stdout
    assert "at no width up to 16" in run("lost", "runs/made", "--feature", 59).stdout
    assert json.loads(run("lost", "runs/made", "--feature", 59, "--json").stdout)["survives_from"] is None


def test_a_run_without_contexts_says_so(saved: FloorPrediction, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = replace(saved.stats, contexts=None, neuronpedia_id=None)
    replace(saved, stats=bare).save("runs/bare")
    for options in (("--width", 4), ("--feature", 3)):
        result = run("lost", "runs/bare", *options)
        assert result.exit_code == 0, result.output
        assert "This run has no contexts; measure again" in result.stdout
        assert "neuronpedia" not in result.stdout
    printed = json.loads(run("lost", "runs/bare", "--width", 4, "--json").stdout)["features"][0]
    assert (printed["contexts"], printed["promoted"], printed["neuronpedia"]) == ([], None, None)


NOT_COMPUTED = "were not computed; add --promoted (in Python, call add_promoted_tokens)."


@pytest.fixture
def forgetful(measured: tuple[Path, Path, Path], tmp_path: Path) -> Path:
    """Copy the measured run without the tokens that its features promote."""
    directory = tmp_path / "run"
    shutil.copytree(measured[0], directory, ignore=shutil.ignore_patterns("promoted.json"))
    return directory


def test_promoted_tokens_are_shown_without_the_teacher_if_the_run_has_them(measured: tuple[Path, Path, Path]) -> None:
    for options in ((), ("--width", 16), ("--feature", PromotedTokens.load(measured[0]).tokens.popitem()[0])):
        result = run("lost", measured[0], *options)
        assert result.exit_code == 0, result.output
        assert NOT_COMPUTED not in " ".join(result.stdout.split())
    assert all(f["promoted"] for f in json.loads(run("lost", measured[0], "--json").stdout)["features"])


def test_missing_promoted_tokens_are_named_and_computed_on_request(
    forgetful: Path, measured: tuple[Path, Path, Path]
) -> None:
    n = len(json.loads(run("lost", forgetful, "--top", 7, "--json").stdout)["features"])
    assert n == 7
    assert f"promoted tokens of 7 of these features {NOT_COMPUTED}" in " ".join(
        run("lost", forgetful, "--top", 7).stdout.split()
    )
    lost = json.loads(run("lost", forgetful, "--top", 7, "--promoted", "--json").stdout)
    assert [feature["promoted"] for feature in lost["features"]] == [
        list(PromotedTokens.load(measured[0]).tokens[feature["feature"]]) for feature in lost["features"]
    ]
    assert sorted(PromotedTokens.load(forgetful).tokens) == sorted(feature["feature"] for feature in lost["features"])
    again = run("lost", forgetful, "--top", 7)  # from the run directory
    assert NOT_COMPUTED not in " ".join(again.stdout.split())
    one = FloorPrediction.load(forgetful).ranked_features[0]
    assert f"promoted tokens of this feature {NOT_COMPUTED}" in " ".join(
        run("lost", forgetful, "--feature", one).stdout.split()
    )
    assert "promotes" in run("lost", forgetful, "--feature", one, "--promoted").stdout
    assert len(PromotedTokens.load(forgetful).tokens) == 8


def test_promoted_loads_the_named_sae(forgetful: Path, sae_dir: Path) -> None:
    moved = shutil.copytree(sae_dir, forgetful.parent / "moved")
    floor = FloorPrediction.load(forgetful)
    replace(floor, stats=replace(floor.stats, sae_name="/nowhere/sae")).save(forgetful)
    result = run("lost", forgetful, "--promoted")
    assert "tl-floor: the promoted tokens of 20 features were not computed: there is no file or folder" in result.stderr
    assert NOT_COMPUTED in " ".join(result.stdout.split())
    result = run("lost", forgetful, "--promoted", "--sae", moved)
    assert (result.exit_code, result.stderr) == (0, "")
    assert NOT_COMPUTED not in " ".join(result.stdout.split())
    assert "add --promoted" in refused(run("lost", forgetful, "--sae", moved))


def test_a_missing_teacher_is_one_sentence_and_the_features_are_shown(forgetful: Path) -> None:
    floor = FloorPrediction.load(forgetful)
    replace(floor, stats=replace(floor.stats, model_name="/nowhere/teacher")).save(forgetful)
    for options in ((), ("--json",), ("--feature", floor.ranked_features[0])):
        result = run("lost", forgetful, "--promoted", *options)
        assert result.exit_code == 0, result.output
        (sentence,) = result.stderr.splitlines()
        assert "were not computed: cannot load a teacher from '/nowhere/teacher'" in sentence
        assert "or call add_promoted_tokens in Python with the teacher and the SAE in memory" in sentence
    assert json.loads(run("lost", forgetful, "--promoted", "--json").stdout)["features"][0]["promoted"] is None
    assert not (forgetful / "promoted.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["runs/nothing"],
            "no run at runs/nothing; make one with tl-floor measure --out runs/nothing, or name another: ",
        ),
        (["runs/nothing"], "runs/made"),
        (["runs/made/floor.json"], "runs/made/floor.json is a file; name the directory of a run, such as runs/made"),
        (["runs/made", "--width", 0], "the width must be at least 1, got 0"),
        (["runs/made", "--feature", 3, "--width", -4], "the width must be at least 1, got -4"),
        (["runs/made", "--top", 0], "at least 1, got 0"),
        (["runs/made", "--feature", 60], "features 0 to 59, got 60"),
        (["runs/made", "--feature", -1], "features 0 to 59, got -1"),
    ],
)
def test_rejects_bad_options(saved: FloorPrediction, options: list[Any], message: str) -> None:
    assert message in refused(run("lost", *options))


def test_rejects_a_damaged_run(saved: FloorPrediction) -> None:
    Path("runs/made/stats.safetensors").write_bytes(b"nothing")
    assert "run tl-floor measure" in refused(run("lost", "runs/made"))


def test_rejects_a_feature_that_never_fired(tmp_path: Path) -> None:
    counts = np.full((2, N), 50)
    counts[:, 7] = 0
    costs = np.stack([COST, COST]) * 1000 * (counts > 0)
    dead = stats_of(None, blocks=(np.array([1000, 1000]), counts, costs))
    floor_from_stats(dead, [2, 4]).save(tmp_path)
    message = refused(run("lost", tmp_path, "--feature", 7))
    assert "feature 7 fired on 0 of 2,000 tokens" in message
    assert "--tokens" in message


words = st.text(st.characters(codec="utf-8"), max_size=30)


@given(words, words, words, st.integers(3, 60))
@settings(max_examples=50)
def test_a_context_fits_on_one_line_with_its_peak(before: str, peak: str, after: str, width: int) -> None:
    console = Console(width=width, file=io.StringIO())
    console.print(ContextCell(FeatureContext(1.0, before, peak, after), ()))
    lines = console.file.getvalue().split("\n")  # type: ignore[attr-defined]
    assert len(lines) == 2
    assert cell_len(lines[0]) <= width
    assert "«" in lines[0]
    if cell_len(escape_control(before + peak + after)) + 2 <= width:
        assert (
            lines[0].replace("«", "").replace("»", "").rstrip()
            == escape_control(before + peak + after).replace("«", "").replace("»", "").rstrip()
        )


def test_control_characters_are_shown_as_symbols() -> None:
    assert escape_control("a\nb\r\tc\x00\x9b\u200b\u2028") == "a⏎b␍⇥c���⏎"
    assert escape_control("é 雪 [red]") == "é 雪 [red]"
