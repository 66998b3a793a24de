"""Tests of the curves that other trainers log, and of the sentences about those that cannot be read."""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.helpers.type_checks import without_type_checks
from tl_distill_floor import InputError, LearningCurve, load_learning_curve

LOSSES = (0.9, 0.7, 0.6)


def write_state(directory: Path, history: Sequence[dict[str, Any]], **fields: Any) -> Path:
    """Write a `trainer_state.json` and return its path."""
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "trainer_state.json"
    file.write_text(json.dumps({"log_history": list(history), "global_step": 30} | fields))
    return file


def history(**tokens: int) -> list[dict[str, Any]]:
    """Return a log as the Trainer writes it, with the training loss, evaluations, and the summary at the end."""
    entries: list[dict[str, Any]] = []
    for i, loss in enumerate(LOSSES, start=1):
        seen = {name: i * count for name, count in tokens.items()}
        entries += [{"step": 10 * i, "loss": 1.1 * loss, "learning_rate": 1e-3 / i, "train_runtime": 2.0} | seen]
        entries += [{"step": 10 * i, "eval_loss": loss, "eval_runtime": 1.0} | seen]
    entries += [dict(entries[-1])]  # the Trainer can evaluate once more at the end
    return [*entries, {"step": 30, "train_loss": 0.8, "train_runtime": 9.0}]


def write_csv(directory: Path, text: str) -> Path:
    """Write a CSV file and return its path."""
    file = directory / "curve.csv"
    file.write_text(text)
    return file


@pytest.mark.parametrize("name", ["num_input_tokens_seen", "num_tokens"])
def test_reads_the_evaluations_of_a_trainer_with_its_tokens(tmp_path: Path, name: str) -> None:
    """The width is that of config.json next to the file, and the learning rate that of the training's entries."""
    file = write_state(tmp_path, history(**{name: 1000}))
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 64}))
    curve = load_learning_curve(file)
    assert (curve.tokens, curve.losses) == ((1000, 2000, 3000), LOSSES)
    assert (curve.column, curve.width, curve.warnings) == ("eval_loss", 64, ())
    assert curve.learning_rates == pytest.approx((1e-3, 5e-4, 1e-3 / 3))


def test_tokens_per_step_are_demanded_and_never_guessed(tmp_path: Path) -> None:
    file = write_state(tmp_path, history(), train_batch_size=8)
    message = (
        "counts steps \\('step'\\) and no tokens; set tokens_per_step= to 8 sequences per process × sequence length"
    )
    with pytest.raises(InputError, match=message):
        load_learning_curve(file)
    assert load_learning_curve(file, tokens_per_step=512).tokens == (5120, 10_240, 15_360)
    with pytest.raises(InputError, match="tokens per step must be above 0, got 0"):
        load_learning_curve(file, tokens_per_step=0)
    with pytest.raises(InputError, match="counts tokens in 'num_tokens'; leave out tokens_per_step="):
        load_learning_curve(write_state(tmp_path, history(num_tokens=90)), tokens_per_step=512)


def test_takes_the_last_checkpoint_of_a_directory(tmp_path: Path) -> None:
    write_state(tmp_path / "checkpoint-9", history(num_tokens=10))
    write_state(tmp_path / "checkpoint-30", history(num_tokens=20))
    assert load_learning_curve(tmp_path).tokens == (20, 40, 60)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds neither a .* nor students"):
        load_learning_curve(tmp_path / "empty")


def test_leaves_out_an_evaluation_before_training(tmp_path: Path) -> None:
    """The Trainer does one with `eval_on_start`."""
    entries = [{"step": 0, "eval_loss": 5.0, "num_tokens": 0}, *history(num_tokens=1000)]
    curve = load_learning_curve(write_state(tmp_path, entries))
    assert (curve.tokens, curve.losses) == ((1000, 2000, 3000), LOSSES)
    rows = [f"{1.7e9 + i},{10 * i},{loss}" for i, loss in enumerate(LOSSES)]
    file = write_csv(tmp_path, "\n".join(["Wall time,Step,Value", *rows]))
    assert load_learning_curve(file, tokens_per_step=100).tokens == (1000, 2000)


def test_a_training_loss_is_read_with_a_warning(tmp_path: Path) -> None:
    entries = [entry for entry in history(num_tokens=1000) if "eval_loss" not in entry]
    curve = load_learning_curve(write_state(tmp_path, entries))
    assert curve.column == "loss"
    assert "'loss' is a loss on training text" in curve.warnings[0]


def test_reads_charts_and_histories_of_weights_and_biases(tmp_path: Path) -> None:
    """A chart has the run's name, and the range of smoothed values; a history has empty cells."""
    columns = "train/global_step,a run - eval/loss,a run - eval/loss__MIN,a run - eval/loss__MAX"
    rows = [f"{10 * i},{loss},{loss},{loss}" for i, loss in enumerate(LOSSES, start=1)]
    file = write_csv(tmp_path, "\n".join([columns, *rows]))
    curve = load_learning_curve(file, tokens_per_step=100)
    assert (curve.tokens, curve.losses, curve.column) == ((1000, 2000, 3000), LOSSES, "a run - eval/loss")
    assert load_learning_curve(file, loss="eval/loss", tokens_per_step=100) == curve

    columns = "_step,train/global_step,train/num_tokens,train/loss,eval/loss"
    text = f"{columns}\n0,10,1000,0.8,\n1,10,,,0.9\n2,15,1500,0.7,\n3,20,,,0.7\n4,25,2500,0.6,\n5,30,,,0.6\n"
    curve = load_learning_curve(write_csv(tmp_path, text))
    assert (curve.tokens, curve.losses) == ((1000, 2000, 3000), LOSSES)  # 20 steps are between 15 and 25, 30 after them


def test_rates_and_steps_are_those_of_the_run_of_the_loss(tmp_path: Path) -> None:
    """Run A logs every 10 steps at a constant rate, run B every 100 steps at a rate that falls."""
    columns = ("train/global_step", "eval/kl", "train/learning_rate")
    header = ",".join(["Step", *(f"{run} - {column}" for run in "AB" for column in columns)])
    rows = [f"{i},{10 * i},{loss},0.001,{100 * i},{loss},{1e-3 / i}" for i, loss in enumerate(LOSSES, start=1)]
    file = write_csv(tmp_path, "\n".join([header, *rows]))
    first, second = (load_learning_curve(file, loss=f"{run} - eval/kl", tokens_per_step=10) for run in "AB")
    assert (first.tokens, first.learning_rates) == ((100, 200, 300), (1e-3, 1e-3, 1e-3))
    assert (second.tokens, second.learning_rates) == ((1000, 2000, 3000), (1e-3, 5e-4, 1e-3 / 3))
    alone = "\n".join(",".join([cells[0], *cells[4:]]) for cells in (r.split(",") for r in (header, *rows)))
    assert load_learning_curve(write_csv(tmp_path, alone), tokens_per_step=10).learning_rates == second.learning_rates


def test_tokens_are_those_of_the_run_of_the_loss(tmp_path: Path) -> None:
    """Both runs log in rows of their own: A trains on 1,000 tokens per step, B on 8,000."""
    rows = ["Step,A - eval/kl,A - num_tokens,B - eval/kl,B - num_tokens"]
    for i, loss in enumerate(LOSSES, start=1):
        rows += [f"{50 * i},{loss},{50_000 * i},,", f"{50 * i + 1},,,{loss},{8000 * (50 * i + 1)}"]
    file = write_csv(tmp_path, "\n".join(rows))
    assert load_learning_curve(file, loss="A - eval/kl").tokens == (50_000, 100_000, 150_000)
    second = load_learning_curve(file, loss="B - eval/kl")
    assert second.tokens == (408_000, 808_000, 1_208_000)
    assert load_learning_curve(file, loss="B - eval/kl", tokens="num_tokens") == second
    with pytest.raises(InputError, match="'A - num_tokens' is of another run than the loss 'B - eval/kl'"):
        load_learning_curve(file, loss="B - eval/kl", tokens="A - num_tokens")


def test_columns_of_tokens_in_different_rows_must_agree_by_step(tmp_path: Path) -> None:
    """100 tokens per step in both columns; then 100 and 200; then without steps to compare them by."""
    counts = (("train/num_tokens,eval/num_tokens", 100), ("train/num_tokens,eval/num_tokens", 200))
    for names, per_step in counts:
        rows = [f"step,{names},eval/loss", "5,500,,"]
        for i, loss in enumerate(LOSSES, start=1):
            rows += [f"{10 * i},,{10 * i * per_step},{loss}", f"{10 * i + 5},{100 * (10 * i + 5)},,"]
        file = write_csv(tmp_path, "\n".join(rows))
        if per_step == 100:
            assert load_learning_curve(file).tokens == (1000, 2000, 3000)
            continue
        message = "counts tokens in several columns; name one with tokens=COLUMN: train/num_tokens, eval/num_tokens"
        with pytest.raises(InputError, match=message):
            load_learning_curve(file)
        assert load_learning_curve(file, tokens="eval/num_tokens").tokens == (2000, 4000, 6000)
    without_steps = "train/num_tokens,eval/num_tokens,eval/loss\n100,,\n,150,0.9\n200,,\n,250,0.8\n"
    with pytest.raises(InputError, match="counts tokens in several columns"):
        load_learning_curve(write_csv(tmp_path, without_steps))


def test_tokens_and_steps_that_are_never_in_one_row_need_tokens_per_step(tmp_path: Path) -> None:
    file = write_csv(tmp_path, "step,tokens,eval_loss\n,1000,\n10,,0.9\n,2000,\n20,,0.7\n")
    message = "has no row with both 'tokens' and 'step', .* set tokens_per_step= to the sequence length"
    with pytest.raises(InputError, match=message):
        load_learning_curve(file)
    with pytest.raises(InputError, match=message):
        load_learning_curve(file, tokens="tokens")
    assert load_learning_curve(file, tokens_per_step=100).tokens == (1000, 2000)
    # Some losses have tokens, others have steps; and tokens that are known at step 0 only.
    with pytest.raises(InputError, match="has a loss without 'tokens' in the same row"):
        load_learning_curve(write_csv(tmp_path, "step,tokens,eval_loss\n,1000,0.9\n20,,0.7\n"))
    with pytest.raises(InputError, match="set tokens_per_step="):
        load_learning_curve(write_csv(tmp_path, "step,tokens,eval_loss\n0,0,\n10,,0.9\n20,,0.7\n"))


def test_nan_stands_for_an_empty_cell(tmp_path: Path) -> None:
    """The log of a Trainer as pandas writes it with `na_rep="NaN"`: rows of the training and of evaluations in turn."""
    header = "step,num_tokens,eval_loss,learning_rate"
    rows = [
        row
        for i, loss in enumerate(LOSSES, start=1)
        for row in (f"{10 * i},{1000 * i},NaN,{1e-3 / i}", f"{10 * i},{1000 * i},{loss},NaN")
    ]
    summary = "30,3000,NaN,NaN"
    curve = load_learning_curve(write_csv(tmp_path, "\n".join([header, *rows, summary])))
    assert (curve.tokens, curve.losses) == ((1000, 2000, 3000), LOSSES)
    assert curve.learning_rates == (1e-3, 5e-4, 1e-3 / 3)
    # The training diverges: no loss follows in the last row of the training and its evaluation.
    diverged = [header, *rows, "40,4000,NaN,0.0001", "40,4000,NaN,NaN"]
    with pytest.raises(InputError, match="is nan after 4,000 tokens, so the training diverged"):
        load_learning_curve(write_csv(tmp_path, "\n".join(diverged)))


def test_tokens_steps_and_rates_that_are_not_finite_are_not_known(tmp_path: Path) -> None:
    """100 tokens per step, counted in the rows of the training only."""
    rows = ["step,num_tokens,learning_rate,eval_loss"]
    for i, loss in enumerate(LOSSES, start=1):
        rows += [f"{10 * i - 5},{1000 * i - 500},0.001,", f"{10 * i},NaN,inf,{loss}", f"NaN,{1000 * i + 100},nan,"]
    curve = load_learning_curve(write_csv(tmp_path, "\n".join(rows)))
    assert curve.tokens == pytest.approx((1000, 2000, 3000))
    assert curve.learning_rates == (1e-3,) * 3
    with pytest.raises(InputError, match="has a loss without 'tokens' in the same row"):
        load_learning_curve(write_csv(tmp_path, "tokens,eval_loss\n100,0.9\ninf,0.8\n"))
    # A rate whose tokens are not known is of no use.
    text = "tokens,eval_loss,learning_rate\n100,0.9,\n,,0.001\n200,0.8,\n"
    assert load_learning_curve(write_csv(tmp_path, text)).learning_rates is None


@pytest.mark.parametrize("column", ["run", "Name", "run_id", "student_width", "model/name"])
def test_rows_of_several_trainings_are_refused(tmp_path: Path, column: str) -> None:
    """The rows of two runs in turn, of which one has more tokens at each of its points."""
    rows = [f"{column},step,num_tokens,eval_loss"]
    for i, loss in enumerate(LOSSES, start=1):
        rows += [f"32,{10 * i},{1000 * i},{loss}", f"64,{10 * i + 5},{1000 * i + 500},{loss / 2}"]
    with pytest.raises(InputError, match=f"losses of several trainings, as '{column}' is 32, 64; keep the rows of one"):
        load_learning_curve(write_csv(tmp_path, "\n".join(rows)))
    alone = load_learning_curve(write_csv(tmp_path, "\n".join([rows[0], *rows[2::2]])))
    assert (alone.tokens, alone.losses) == ((1500, 2500, 3500), tuple(loss / 2 for loss in LOSSES))


def test_columns_that_number_rows_or_differ_only_without_a_loss_are_no_trainings(tmp_path: Path) -> None:
    header, tokens = "id,run name,job name,student/grad_norm,tokens,eval_loss", (10, 20, 30)
    rows = [f"{i},step {i},eval,{i % 2},{n},{loss}" for i, (n, loss) in enumerate(zip(tokens, LOSSES, strict=True))]
    file = write_csv(tmp_path, "\n".join([header, "9,step 0,train,0,5,", *rows]))
    assert load_learning_curve(file).losses == LOSSES


@pytest.mark.parametrize(
    ("text", "cell", "column"),
    [
        ('tokens,eval_loss\n10,"1,200.0"\n20,600\n30,"1,100.0"\n', "1,200.0", "eval_loss"),
        ('tokens,eval_loss\n10,"0,9"\n20,"0,8"\n', "0,9", "eval_loss"),
        ('tokens,eval_loss\n"1,000",0.9\n"2,000",0.8\n', "1,000", "tokens"),
        ("tokens,step,eval_loss\n1,1,0.9\n2M,2,0.8\n", "2M", "tokens"),
        ("step,tokens,eval_loss\n1 000,,0.9\n2000,20,0.8\n", "1 000", "step"),
        ('tokens,lr,eval_loss\n1,0.1,0.9\n2,"0,1",0.8\n', "0,1", "lr"),
    ],
)
def test_numbers_that_cannot_be_read_are_refused(tmp_path: Path, text: str, cell: str, column: str) -> None:
    with pytest.raises(InputError, match=f"has '{cell}' in column '{column}'; write numbers without separators"):
        load_learning_curve(write_csv(tmp_path, text))


def test_columns_that_are_not_used_may_hold_anything(tmp_path: Path) -> None:
    text = 'tokens,speed,note,eval_loss,A - lr\n10,"1,200/s",n/a,0.9,\n20,"1,200",,0.8,"0,1"\n'
    assert load_learning_curve(write_csv(tmp_path, text)).losses == (0.9, 0.8)


def test_steps_that_weights_and_biases_counts_need_a_look(tmp_path: Path) -> None:
    curve = load_learning_curve(write_csv(tmp_path, "Step,r - loss\n10,0.9\n20,0.8\n"), tokens_per_step=10)
    assert "counts calls of wandb.log" in curve.warnings[0]


def test_reads_an_export_of_tensorboard(tmp_path: Path) -> None:
    rows = [f"{1.7e9 + i},{10 * i},{loss}" for i, loss in enumerate(LOSSES, start=1)]
    file = write_csv(tmp_path, "\n".join(["Wall time,Step,Value", *rows]))
    curve = load_learning_curve(file, tokens_per_step=100)
    assert (curve.tokens, curve.losses, curve.warnings) == ((1000, 2000, 3000), LOSSES, ())


def test_bits_become_nats(tmp_path: Path) -> None:
    """1 bit is ln 2 = 0.693 nats."""
    file = write_csv(tmp_path, "tokens,loss\n10,2\n20,1\n")
    assert load_learning_curve(file, unit="bits").losses == pytest.approx((2 * math.log(2), math.log(2)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a readable .csv file"),
        ("tokens,loss\n", "has no rows"),
        ("tokens,loss\nmany,low\n", "holds no numbers"),
        ("a,b\n1,2\n", "no column of .* is called a loss; name it with loss=: a, b"),
        ("a,loss\n1,2\n", "no column of .* counts tokens or steps; name one with tokens=COLUMN: a, loss"),
        ("tokens,eval_loss,eval_kl\n1,2,1\n", "several losses; name KL.* with loss=: eval_loss, eval_kl"),
        ("tokens,r1 - eval/loss,r2 - eval/loss\n1,2,1\n", "several losses; .* r1 - eval/loss, r2 - eval/loss"),
        ("tokens,num_tokens,loss\n1,2,1\n", "counts tokens in several columns; name one with tokens=COLUMN"),
        ("tokens,loss\n10,0.9\n20,0.8\n5,0.7\n", "fall from 20 to 5 after point 2, so the training was restarted"),
        ("tokens,loss\n10,0.9\n20,nan\n", "is nan after 20 tokens, so the training diverged"),
        ("tokens,loss\n10,0.9\n20,inf\n", "is inf after 20 tokens"),
        ("tokens,loss\n10,0.9\n20,-0.2\n", "is -0.2 after 20 tokens, but KL.* is never negative"),
        ("tokens,loss\n-5,0.9\n20,0.8\n", "start at -5; remove the points before training"),
        ("tokens,loss\n0,0.9\n", "needs one loss for each number of tokens, and at least one point"),
        ("tokens,loss\n10,0.9\n10,0.5\n", "two losses at 10 tokens"),
        ("tokens,loss\n5,\n,0.9\n", "has a loss without 'tokens' in the same row"),
    ],
)
def test_bad_tables_give_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_learning_curve(write_csv(tmp_path, text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "has no log_history"),
        ('{"log_history": 3}', "has no log_history"),
        ('{"log_history": []}', "log_history of .* is empty"),
        ('{"log_history": [{"step": 3, "loss": "low"}]}', "no column of .* is called a loss"),
    ],
)
def test_bad_states_give_one_sentence(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "trainer_state.json"
    file.write_text(content)
    with pytest.raises(InputError, match=message):
        load_learning_curve(file)


def test_names_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    file = write_csv(tmp_path, "tokens,r1 - kl,r2 - kl\n1,2,3\n")
    with pytest.raises(
        InputError, match="no column 'eval_kl' of numbers; name one with loss=: tokens, r1 - kl, r2 - kl"
    ):
        load_learning_curve(file, loss="eval_kl")
    with pytest.raises(InputError, match="has 'kl' of several runs; name one with loss=: r1 - kl, r2 - kl"):
        load_learning_curve(file, loss="kl")
    with pytest.raises(InputError, match="no column 'steps' of numbers; name one with tokens=COLUMN: "):
        load_learning_curve(file, loss="r1 - kl", tokens="steps")
    with pytest.raises(InputError, match=r"there is no learning curve at .*missing"):
        load_learning_curve(tmp_path / "missing.csv")
    other = tmp_path / "curve.parquet"
    other.write_bytes(b"PAR1")
    with pytest.raises(InputError, match="is not a log that can be read"):
        load_learning_curve(other)


def test_a_curve_in_memory_is_checked_too() -> None:
    with pytest.raises(InputError, match="the curve needs one loss for each number of tokens"):
        LearningCurve(tokens=(1.0,), losses=())
    with pytest.raises(InputError, match="start at 0; remove the points before training"):
        LearningCurve(tokens=(0.0, 1.0), losses=(0.9, 0.8))


def table(**columns: Sequence[object]) -> str:
    """Return the text of a CSV file; two underscores in a name stand for a slash."""
    names = ",".join(name.replace("__", "/") for name in columns)
    return "\n".join([names, *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))])


TOKENS = (1000.0, 2000.0, 3000.0)


@pytest.mark.parametrize(
    "name",
    [
        "eval_ce_loss", "val/lm_loss", "eval/hidden_mse_loss", "eval/reverse_kl", "eval_nll_loss", "eval/js_loss",
        "eval_kl(student||teacher)", "eval/kl_temp2", "eval/kl_top64", "eval_kl_sum", "eval_kl_per_sequence",
        "val_log_loss", "val/log10_kl", "val_kl_log2",
    ],
)  # fmt: skip
def test_other_losses_are_not_taken_for_the_kl(tmp_path: Path, name: str) -> None:
    """A loss that may be the KL by its name is taken, also if it is a training loss."""
    rows = {"tokens": TOKENS, name: (3.9, 3.7, 3.6)}
    file = write_csv(tmp_path, table(**rows, train__kl=LOSSES))
    assert (load_learning_curve(file).column, load_learning_curve(file).losses) == ("train/kl", LOSSES)
    with pytest.raises(InputError, match=f"'{re.escape(name)}' of .* is .* by its name; add KL"):
        load_learning_curve(write_csv(tmp_path, table(**rows)))
    assert load_learning_curve(tmp_path / "curve.csv", loss=name).losses == (3.9, 3.7, 3.6)


def test_a_kl_of_a_language_model_is_a_kl(tmp_path: Path) -> None:
    assert load_learning_curve(write_csv(tmp_path, table(tokens=TOKENS, eval__lm_kl=LOSSES))).losses == LOSSES


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("kl_mnats", "is in thousandths of nats"),
        ("eval_ppl", "is a perplexity"),
        ("eval_loss_bpb", "is in bits per byte"),
        ("val/perplexity", "is a perplexity"),
    ],
)
def test_scales_that_are_no_nats_are_refused(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(InputError, match=f"'{name}' {message} by its name; set loss= to a column of KL"):
        load_learning_curve(write_csv(tmp_path, table(tokens=TOKENS, **{name: LOSSES})), loss=name)


@pytest.mark.parametrize("name", ["eval_kl_bits", "kl (bit)", "kl_bpt"])
def test_a_name_that_says_bits_needs_the_unit(tmp_path: Path, name: str) -> None:
    file = write_csv(tmp_path, table(tokens=TOKENS, **{name: LOSSES}))
    with pytest.raises(InputError, match=f"'{re.escape(name)}' is in bits by its name; set unit=.bits"):
        load_learning_curve(file)
    assert load_learning_curve(file, unit="bits").losses == pytest.approx([math.log(2) * loss for loss in LOSSES])
    with pytest.raises(InputError, match="'kl_nats' is in nats by its name; leave out unit="):
        load_learning_curve(write_csv(tmp_path, table(tokens=TOKENS, kl_nats=LOSSES)), unit="bits")


@pytest.mark.parametrize(
    ("name", "counts"), [("tokens", (0.001, 0.002, 3)), ("tokens (M)", TOKENS), ("tokens_b", (1, 2, 3))]
)
def test_tokens_that_are_not_counted_one_by_one_are_refused(tmp_path: Path, name: str, counts: Sequence[float]) -> None:
    file = write_csv(tmp_path, table(**{name: counts}, loss=LOSSES))
    with pytest.raises(InputError, match="does not count single tokens"):
        load_learning_curve(file, tokens=name)


@pytest.mark.parametrize("name", ["rank0/tokens", "local/num_tokens", "tokens_per_gpu", "tokens per second"])
def test_tokens_of_one_device_or_step_are_refused(tmp_path: Path, name: str) -> None:
    file = write_csv(tmp_path, table(**{name: TOKENS}, loss=LOSSES))
    with pytest.raises(InputError, match=f"'{name}' of .* counts the tokens of one device, step or second by its name"):
        load_learning_curve(file, tokens=name)


@pytest.mark.parametrize("name", ["consumed_samples", "Step", "train/epoch"])
def test_a_column_that_may_not_count_tokens_gives_a_warning(tmp_path: Path, name: str) -> None:
    """It is not refused: some trainers log tokens in place of steps."""
    curve = load_learning_curve(write_csv(tmp_path, table(**{name: TOKENS}, loss=LOSSES)), tokens=name)
    assert curve.tokens == tuple(map(float, TOKENS))
    assert curve.warnings[0].startswith(f"{name!r} is taken as the tokens trained on; if it counts something else")
    named = load_learning_curve(write_csv(tmp_path, table(step_tokens=TOKENS, loss=LOSSES)), tokens="step_tokens")
    assert named.warnings == ()


def test_very_few_tokens_give_a_warning(tmp_path: Path) -> None:
    """They may be millions, with one step for each point, so that the steps do not show it."""
    (warning,) = load_learning_curve(write_csv(tmp_path, table(tokens=(1, 2, 3), loss=LOSSES))).warnings
    assert warning == "'tokens' ends at 3: if these are thousands or millions, multiply them in the file"


def test_fewer_tokens_than_steps_are_refused(tmp_path: Path) -> None:
    """Millions of tokens, in a column that does not say so."""
    file = write_csv(tmp_path, table(step=(1000, 2000, 3000), tokens=(4.1, 8.2, 12.3), loss=LOSSES))
    with pytest.raises(InputError, match=r"'tokens' of .* does not count single tokens, .* \(such as 4\.1\); multiply"):
        load_learning_curve(file)


@pytest.mark.parametrize("name", ["lr-AdamW", "lr/group_0", "optimizer/lr", "Learning Rate"])
def test_learning_rates_are_found_by_other_names(tmp_path: Path, name: str) -> None:
    rates = (3e-3, 2e-3, 1e-3)
    others = {"base_lr": (1, 1, 1), "lr-AdamW-momentum": (0.9, 0.9, 0.9), "lr_scheduler/step": (1, 2, 3)}
    text = table(tokens=TOKENS, loss=LOSSES, **others, **{name: rates})
    assert load_learning_curve(write_csv(tmp_path, text)).learning_rates == rates


def test_learning_rates_of_groups_must_have_one_schedule(tmp_path: Path) -> None:
    """A group that is not trained has the rate 0, and others a multiple of the same schedule."""
    columns = {"tokens": TOKENS, "loss": LOSSES, "lr/0": (0, 0, 0), "lr/1": (2e-3, 1e-3, 0), "lr/2": (4e-3, 2e-3, 0)}
    assert load_learning_curve(write_csv(tmp_path, table(**columns))).learning_rates == (4e-3, 2e-3, 0)
    columns["lr/2"] = (4e-3, 4e-3, 4e-3)
    with pytest.raises(InputError, match="learning rates of different schedules, lr/1 and lr/2; keep one"):
        load_learning_curve(write_csv(tmp_path, table(**columns)))


def test_learning_rates_in_different_rows_are_those_of_one_training(tmp_path: Path) -> None:
    file = write_csv(tmp_path, "tokens,loss,train/lr,val/lr\n1000,0.9,0.3,\n2000,0.7,,0.2\n")
    assert load_learning_curve(file).learning_rates == (0.3, 0.3)


def test_reads_json_lines(tmp_path: Path) -> None:
    """Such as LLaMA-Factory writes them, with a last line that has no loss."""
    lines = [{"current_steps": 10 * i, "loss": loss, "lr": 1e-3} for i, loss in enumerate(LOSSES, start=1)]
    file = tmp_path / "trainer_log.jsonl"
    file.write_text("\n".join(map(json.dumps, [*lines, {"current_steps": 30, "elapsed_time": "0:00:09"}])))
    curve = load_learning_curve(file, tokens_per_step=100)
    assert (curve.tokens, curve.losses, curve.learning_rates) == ((1000, 2000, 3000), LOSSES, (1e-3, 1e-3, 1e-3))


@pytest.mark.parametrize(("separator", "name"), [(";", "semicolons"), ("\t", "tabs")])
def test_another_separator_than_the_name_of_the_file_says_is_named(tmp_path: Path, separator: str, name: str) -> None:
    text = table(tokens=TOKENS, loss=LOSSES).replace(",", separator)
    with pytest.raises(InputError, match=f"has {name} between its columns; save it with commas"):
        load_learning_curve(write_csv(tmp_path, text))


def test_numbers_in_memory_may_be_arrays() -> None:
    with without_type_checks():
        curve = LearningCurve(np.array(TOKENS), pd.Series(LOSSES), learning_rates=np.ones(3))  # type: ignore[arg-type]
        with pytest.raises(InputError, match="is read from a file, got DataFrame; give a path, or LearningCurve"):
            load_learning_curve(pd.DataFrame({"tokens": TOKENS, "loss": LOSSES}))  # type: ignore[arg-type]
    assert curve == LearningCurve(tokens=TOKENS, losses=LOSSES, learning_rates=(1.0, 1.0, 1.0))


@pytest.mark.parametrize("rates", [(1e-3,), (1e-3, math.nan, 1e-3), (1e-3, -1e-3, 0.0)])
def test_learning_rates_in_memory_are_checked(rates: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="learning rate"):
        LearningCurve(tokens=TOKENS, losses=LOSSES, learning_rates=rates)
    with pytest.raises(InputError, match="a loss after inf tokens"):
        LearningCurve(tokens=(1.0, 2.0, math.inf), losses=LOSSES)
