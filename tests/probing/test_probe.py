"""Linear probes: on activations of known decodability, on a tiny random model, and the records of both."""

import copy
import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csc_array, csr_array
from scipy.stats import norm
from sklearn.metrics import roc_auc_score
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.helpers.models import HOOK
from tests.helpers.probes import rows
from tests.helpers.records import stats_of
from tl_distill_floor import Probes, probe
from tl_distill_floor.distilling.layers import is_residual, student_layer
from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.hooks import reader
from tl_distill_floor.predicting.simulation import BottleneckTask, hidden_states
from tl_distill_floor.predicting.toy import StepCounter
from tl_distill_floor.probing.decodability import Tokens, _features, auroc, decoded
from tl_distill_floor.probing.items import MEAN, Items, sequences_of
from tl_distill_floor.probing.probe import collect, fit, split_of
from tl_distill_floor.probing.probe_run import forecasts
from tl_distill_floor.results.codes import Codes
from tl_distill_floor.results.feature_stats import BlockSums
from tl_distill_floor.results.probes import separation
from tl_distill_floor.sources.labels import join_words, load_labels


def items(label: np.ndarray, document: np.ndarray | None = None) -> Items:
    n = len(label)
    places = np.arange(n, dtype=np.int64)
    classes = tuple(str(c) for c in np.unique(label))
    document = places if document is None else document.astype(np.int64)
    return Items("made", "word", "word", classes, places, places, label.astype(np.int64), document)


def test_activations_of_known_decodability() -> None:
    # Two classes at ±1 along one direction, with unit noise: no line does better than Φ(1) = 0.841, and a draw of one
    # class lies above one of the other with probability Φ(2/√2) = 0.921.
    random = np.random.default_rng(0)
    label = random.integers(0, 2, 6000)
    x = random.normal(size=(6000, 8))
    x[:, 3] += 2.0 * label - 1.0
    scores = fit(x, items(label), splits=3)
    assert np.mean(scores.accuracy) == pytest.approx(norm.cdf(1.0), abs=0.015)
    assert np.mean(scores.auroc) == pytest.approx(norm.cdf(math.sqrt(2.0)), abs=0.015)
    assert np.mean(scores.majority) == pytest.approx(0.5, abs=0.03)


def test_a_permutation_of_the_labels_gives_chance() -> None:
    random = np.random.default_rng(1)
    label = np.repeat(np.arange(3), 1000)
    x = random.normal(size=(3000, 6)) + 3.0 * np.eye(3, 6)[label]
    assert np.mean(fit(x, items(label), splits=2).accuracy) > 0.9
    shuffled = fit(x, items(random.permutation(label)), splits=3)
    assert np.mean(shuffled.accuracy) == pytest.approx(1 / 3, abs=0.04)
    assert np.mean(shuffled.auroc) == pytest.approx(0.5, abs=0.04)


def test_what_gives_a_document_away_is_not_learned() -> None:
    # Every document has a direction and a label of its own: a split by items would read the label off perfectly.
    random = np.random.default_rng(2)
    document = np.repeat(np.arange(60), 20)
    label = random.permutation(np.arange(60) % 2)[document]
    x = 5.0 * np.eye(60)[document] + 0.1 * random.normal(size=(1200, 60))
    assert np.mean(fit(x, items(label, document), splits=5).accuracy) == pytest.approx(0.5, abs=0.15)


@settings(max_examples=40)
@given(st.integers(5, 30), st.integers(2, 4), st.integers(0, 10**6))
def test_no_document_stands_on_two_sides(n_documents: int, n_classes: int, seed: int) -> None:
    document = np.repeat(np.arange(n_documents), n_classes)
    label = np.tile(np.arange(n_classes), n_documents)
    parts = split_of(items(label, document), seed)
    of = [set(document[part].tolist()) for part in parts]
    assert not of[0] & of[1]
    assert not of[0] & of[2]
    assert not of[1] & of[2]
    assert of[0] | of[1] | of[2] == set(range(n_documents))
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(label)))


def test_splits_differ_from_seed_to_seed() -> None:
    document = np.repeat(np.arange(30), 7 + np.arange(30))
    label = document % 3
    assert len({tuple(split_of(items(label, document), seed).test.tolist()) for seed in range(5)}) == 5


def test_words_are_probed_at_their_last_token(tokenizer: Any) -> None:
    labelled = load_labels(rows(), ["length", "half"])
    found = sequences_of(labelled, tokenizer, context_size=64)
    length, half = found.items
    assert found.warnings == ()
    assert (length.level, half.level, length.classes, half.classes) == ("word", "text", ("long", "short"), ("0", "1"))
    for text, position, label in zip(length.text, length.position, length.label, strict=True):
        ids = found.ids[text]
        start = int(position)
        # Back to where the word begins: tokens that begin with a space begin a word.
        read = tokenizer.decode(ids[1 : start + 1]).split(" ")[-1]
        row = rows()[text]
        assert read in row["words"]
        assert row["length"][row["words"].index(read)] == length.classes[label]
    assert len(length) == sum(label is not None for row in rows() for label in row["length"])
    assert (half.position == MEAN).all()


def test_what_is_collected_is_what_the_model_has(bridge: Any, tokenizer: Any) -> None:
    labelled = load_labels(rows(), ["length", "half"])
    for pool in ("mean", "last"):
        sequences = sequences_of(labelled, tokenizer, pool=pool, context_size=24)
        found = collect(bridge, HOOK, sequences, batch_size=5)["activation"]
        for values, task in zip(found, sequences.items, strict=True):
            for i in range(0, len(task), 7):
                ids = sequences.ids[task.text[i]]
                with reader(bridge, [HOOK]) as read:
                    alone = read(ids[None])[0][0]
                expected = alone[1:].mean(0) if task.position[i] == MEAN else alone[task.position[i]]
                np.testing.assert_allclose(values[i], expected.numpy(), rtol=1e-4, atol=1e-5)


def test_words_end_at_their_last_byte_and_share_no_token() -> None:
    """A tokenizer that knows bytes, and one token for a full stop and a quotation mark together."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(['."'] * 9, trainers.BpeTrainer(initial_alphabet=alphabet, special_tokens=["<s>"]))
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>")
    words = ["日本", "café", "a", ".", '"', "b"]
    some = [{"text": '日本 café a." b', "words": words, "label": [str(i) for i in range(6)]} for _ in range(6)]
    found = sequences_of(load_labels(some), fast)
    (ids,), positions = {tuple(row.tolist()) for row in found.ids}, found.items[0].position.reshape(-1, 6)
    # <s>, 2 · 3 bytes, a space and 5 bytes, a space and "a", '."', a space and "b".
    assert len(ids) == 1 + 6 + 6 + 2 + 1 + 2
    assert found.items[0].classes == ("0", "1", "2", "4", "5")
    assert sorted(set(positions.ravel().tolist())) == [6, 12, 14, 15, 17]
    assert found.warnings == ("words that end in a token with a part of the next one, left out: 6",)


def test_the_first_position_is_never_probed(tokenizer: Any, bridge: Any) -> None:
    labelled = load_labels(rows(), ["length", "half"])
    without = sequences_of(labelled, tokenizer, prepend_bos=False)
    lengths = [[len(ids) for ids in found.ids] for found in (without, sequences_of(labelled, tokenizer))]
    assert [n + 1 for n in lengths[0]] == lengths[1]
    assert without.items[0].position.min() > 0
    found = collect(bridge, HOOK, without)["activation"][1]
    with reader(bridge, [HOOK]) as read:
        alone = read(without.ids[without.items[1].text[0]][None])[0][0]
    np.testing.assert_allclose(found[0], alone[1:].mean(0).numpy(), rtol=1e-4, atol=1e-5)


def test_longer_texts_are_cut_and_rare_classes_left_out(tokenizer: Any) -> None:
    some = rows()
    some[0]["length"] = ["once", *some[0]["length"][1:]]
    found = sequences_of(load_labels(some, ["length"]), tokenizer, context_size=14)
    assert any("texts longer than 14 tokens, which were cut: " in warning for warning in found.warnings)
    assert any("1 of 3 classes stand in fewer than 5 documents and were left out (once)" in w for w in found.warnings)
    assert found.items[0].classes == ("long", "short")
    assert found.items[0].position.max() < 14
    few = sequences_of(load_labels(some, ["length"]), tokenizer, per_class=3).items[0]
    assert np.bincount(few.label).tolist() == [3, 3]


def test_a_probe_of_a_model(bridge: Any) -> None:
    found = probe(bridge, HOOK, rows(), label="length", splits=2)
    assert (found.task, found.level, found.pool, found.kind) == ("length", "word", "word", "teacher")
    assert found.n_documents == 12
    assert found.chance == 0.5
    assert len(found.accuracy) == 2
    assert 0.4 < found.mean_accuracy <= 1.0
    # Two splits: the mean ± t(0.975, 1) · |a − b|/√2 · √(1/2 + 1/3).
    one, other = found.accuracy
    reach = 12.7062 * abs(one - other) / math.sqrt(2) * math.sqrt(1 / 2 + 1 / 3)
    assert found.interval == pytest.approx((found.mean_accuracy - reach, found.mean_accuracy + reach), rel=1e-4)
    assert probe(bridge, HOOK, rows(), label="length", splits=2) == found


@pytest.mark.parametrize(
    ("given", "options", "says"),
    [
        ([], {}, "holds no rows"),
        ([{"text": "a"}], {}, "row 1 has no 'label'; name one of its labels with --label: it has none"),
        ([{"text": "a", "genre": "b"}], {}, "name one of its labels with --label: genre"),
        ([{"label": "a"}], {}, "row 1 has no text"),
        ([{"text": "a", "label": ["x"]}], {}, "1 labels 'label' for 0 words"),
        ([{"words": ["a", "b"], "label": ["x"]}], {}, "1 labels 'label' for 2 words"),
        ([{"words": ["a", ""], "label": ["x", "y"]}], {}, "strings that are not empty"),
        ([{"words": ["a", "b"], "text": "b a", "label": ["x", "y"]}], {}, "the word 'b' does not follow in the text"),
        ([{"text": "a", "label": 1.5}], {}, "the label 'label' is float"),
        ([{"text": "a\0", "label": 1}], {}, "NUL bytes"),
        ([3], {}, "row 1 is int"),
        (7, {}, "labelled text is a file, a dataset's name or rows, got int"),
        (Path("missing.jsonl"), {}, "no labelled text at missing.jsonl"),
        ([{"text": "a", "label": "x"}] * 9, {}, "needs two classes that stand in 5 documents or more; found 'x' in 9"),
        ([{"text": "a", "label": f"{i}"} for i in range(9)], {}, "found '0' in 1, '1' in 1"),
        ([{"text": "a", "label": "x"}, {"words": ["a"], "label": ["y"]}], {}, "give it two names"),
        (
            [{"text": "a", "label": i % 2} for i in range(20)],
            {"pool": "max"},
            "probed at their mean or last, got 'max'",
        ),
        ([{"text": "a", "label": i % 2} for i in range(20)], {"splits": 0}, "the number of splits must be at least 1"),
        ([{"text": "a", "label": i % 2} for i in range(20)], {"per_class": 1}, "at least 2 items"),
        ([{"text": "a", "label": i % 2} for i in range(20)], {"context_size": 900}, "2 to 64 tokens, got 900"),
    ],
)
def test_bad_input(bridge: Any, given: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says.replace("(", r"\(")):
        probe(bridge, HOOK, given, **options)


def test_bad_hook_points(bridge: Any) -> None:
    with pytest.raises(InputError, match="layers 0 to 2, got layer 9"):
        probe(bridge, "blocks.9.hook_resid_post", rows(), label="length")


def test_files_and_the_embedded_passages(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "a", "label": "x", "id": 3}\n\n{"text": "b", "label": null}\n')
    found = load_labels(file)
    assert (found.texts, found.documents, found.tasks[0].of_text) == (("a", "b"), ("3", "row 2"), ("x", None))
    assert load_labels(found) is found
    assert load_labels(found, ["label", "label"]).tasks == found.tasks
    with pytest.raises(InputError, match="has no 'genre'; name one of its labels: label"):
        load_labels(found, ["genre"])
    twice = load_labels([{"text": "a", "label": np.int64(3), "document": None, "id": 7}], ["label", "label"])
    assert (twice.documents, [task.of_text for task in twice.tasks]) == (("7",), [("3",)])
    embedded = load_labels()
    assert {task.name: task.level for task in embedded.tasks} == {
        "author": "text",
        "word_class": "word",
        "next_word_class": "word",
    }
    assert len(embedded.texts) == 750
    text, ends = embedded.texts[0], embedded.ends[0]
    assert text[: ends[0]] == "but"
    file.write_text('{"text": "a"\n')
    with pytest.raises(InputError, match="line 1 is no JSON"):
        load_labels(file)


def test_a_dataset_is_read_as_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [{"text": "a", "label": 1}, {"text": "b", "label": 0}]
    asked: list[Any] = []

    def load_dataset(*given: Any, **options: Any) -> list[dict[str, Any]]:
        asked.append((given, options))
        return found

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    labelled = load_labels("owner/name:config")
    assert (labelled.name, labelled.texts, labelled.tasks[0].of_text) == ("owner/name:config", ("a", "b"), ("1", "0"))
    assert asked == [(("owner/name", "config"), {"split": "train", "streaming": True})]
    with pytest.raises(InputError, match="row 1 has no 'topic'; name one of its labels with --label"):
        load_labels("owner/name", ["topic"])


def test_words_are_joined_as_prose_is_written() -> None:
    text, ends = join_words(["He", "said", ",", "``", "no", "''", "(", "twice", ")", "."])
    assert text == "He said, ``no'' (twice)."
    assert [text[:end] for end in ends[:3]] == ["He", "He said", "He said,"]


def test_features_are_read_off_by_a_line() -> None:
    # Feature 0 is a coordinate, feature 1 the sum of two, feature 2 fires whatever the activation is.
    random = np.random.default_rng(3)
    x = random.normal(size=(5000, 6)).astype(np.float32)
    codes = np.stack([np.maximum(x[:, 0] - 1, 0), x[:, 1] + x[:, 2], random.random(5000) < 0.2], axis=1)
    parts = np.arange(5000) % 5
    ranked, explained = decoded(x, csc_array(codes), parts)
    assert ranked[0] > 0.97
    assert explained[1] == pytest.approx(1.0, abs=1e-3)
    assert ranked[2] == pytest.approx(0.5, abs=0.06)
    assert explained[2] == pytest.approx(0.0, abs=0.02)
    # A line explains Cov(x, y)²/Var(y) of y = max(x − 1, 0), x standard normal: Cov = P(x > 1) = 0.1587,
    # E[y] = φ(1) − 0.1587 = 0.0833, E[y²] = 2 · 0.1587 − φ(1) = 0.0754, so 0.0252 / 0.0685 = 0.368.
    assert explained[0] == pytest.approx(0.368, abs=0.04)


def test_auroc_is_that_of_a_library() -> None:
    random = np.random.default_rng(4)
    score, fired = np.round(random.normal(size=(300, 5)), 1), random.random((300, 5)) < 0.1
    expected = [roc_auc_score(fired[:, i], score[:, i]) for i in range(5)]
    np.testing.assert_allclose(auroc(score, fired), expected)


def test_kept_and_lost_are_told_apart() -> None:
    # Of the pairs (kept, lost): 0.9 > 0.5, 0.9 > 0.2, 0.4 < 0.5, 0.4 > 0.2: three of four.
    assert separation((0.9, 0.5, 0.4, 0.2), (True, False, True, False)) == 0.75
    assert separation((0.5, 0.5), (True, False)) == 0.5
    assert math.isnan(separation((0.5, 0.4), (True, True)))


def test_probes_are_stored_and_compared(probes: Probes, tmp_path: Path) -> None:
    assert probes.save(tmp_path) == tmp_path / "probes.json"
    assert Probes.load(tmp_path) == probes
    (teacher,), (student,) = probes.of("genre", "teacher"), probes.of("genre", "student")
    assert student.retained(teacher) == pytest.approx((0.7 - 0.5) / (0.9 - 0.5))
    assert probes.forecast_error("kept") == pytest.approx(0.06)
    assert math.isnan(probes.forecast_error("bottleneck"))
    assert [r.width for r in probes.of("genre", "kept")] == [4, 8]
    assert probes.features[0].separation == 1.0
    for damage in (b"{", b"[]", b'{"format": "tl-distill-floor/probes", "version": 9}', b'{"format": "x"}'):
        (tmp_path / "probes.json").write_bytes(damage)
        with pytest.raises(InputError, match=r"probes\.json"):
            Probes.load(tmp_path)


def test_forecasts_are_of_the_features_that_they_name(sae: Any) -> None:
    """Against the SAE's own decoder on masked codes, and against the bottleneck's own weights."""
    activation = torch.randn(7, sae.cfg.d_in, generator=torch.Generator().manual_seed(5))
    kept = torch.zeros(sae.cfg.d_sae, dtype=torch.bool)
    kept[[3, 40, 41]] = True
    readout = forecasts(sae, sae.cfg.d_in, 3, {8: kept}, {4: lambda codes: codes[:, :4] * 2})
    seen = readout.views(readout.of_token(activation))
    codes = sae.encode(activation)
    masked = codes.clone()
    masked[:, ~kept] = 0.0
    torch.testing.assert_close(seen["kept 8"] + sae.b_dec, sae.decode(masked))
    torch.testing.assert_close(seen["bottleneck 4"], codes[:, :4] * 2)
    torch.testing.assert_close(seen["activation"], activation, rtol=0, atol=0)


def test_an_sae_that_joins_heads_itself_is_read_as_one_of_joined_heads(sae: Any) -> None:
    found = []
    activation = torch.randn(6, sae.cfg.d_in, generator=torch.Generator().manual_seed(8))
    for reshape in ("none", "hook_z"):
        config = copy.deepcopy(sae.cfg)
        config.metadata.hook_name, config.reshape_activations = "blocks.1.attn.hook_z", reshape
        z = type(sae)(config)
        z.load_state_dict(sae.state_dict())
        readout = forecasts(z, sae.cfg.d_in, 3, {8: torch.ones(sae.cfg.d_sae, dtype=torch.bool)}, {})
        found.append(readout.views(readout.of_token(activation))["kept 8"])
    torch.testing.assert_close(found[1], found[0])


def test_what_a_bottleneck_holds_is_its_weights_times_scaled_codes() -> None:
    random = np.random.default_rng(6)
    dense = np.maximum(random.normal(size=(600, 5)) - 0.5, 0.0)
    dense[:, 2] = 0.0  # never fires, so no row of W is its
    codes = Codes.from_dense(dense, np.repeat(np.arange(60), 10))
    cost, norm = (dense**2).sum(0) / 600, np.array([1.0, 2.0, 1.0, 0.5, 1.0])
    stats = dataclasses.replace(
        stats_of(cost, n_tokens=600), codes=codes, decoder_norm=norm, sum_act_sq=(dense**2).sum(0),
        firing_count=(dense > 0).sum(0), sum_cost=cost * 600,
        blocks=BlockSums(np.array([600]), (dense > 0).sum(0)[None], (cost * 600)[None]),
    )  # fmt: skip
    (holds,) = hidden_states(stats, [2], steps=4, seed=3)
    unit = holds(torch.eye(5))
    assert torch.equal(unit[2], torch.zeros(2))
    # Linear in the codes, each row times its decoder's norm.
    torch.testing.assert_close(
        holds(torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]])), torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])[None] @ unit
    )
    task = BottleneckTask.of(stats, stats.alive(1), 3, "cpu")
    (reached,) = task.reached([2], 4, 1024, 3, StepCounter(None, 1))
    torch.testing.assert_close(unit[[0, 1, 3, 4]], reached.models[1].W * torch.tensor([1.0, 2.0, 0.5, 1.0])[:, None])


def test_which_layer_of_a_student_stands_for_which_of_its_teacher() -> None:
    of = [student_layer(f"blocks.{layer}.hook_resid_post", 12, 6) for layer in range(12)]
    assert of == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    same = [student_layer(f"blocks.{layer}.hook_out", 4, 4) for layer in range(4)]
    assert same == [0, 1, 2, 3]
    assert student_layer("blocks.6.hook_resid_pre", 12, 12) == 5
    assert student_layer("blocks.0.hook_resid_pre", 12, 12) == 0
    assert [is_residual(f"blocks.1.{name}") for name in ("hook_out", "hook_in", "attn.hook_out", "hook_mlp_out")] == [
        True, True, False, False,
    ]  # fmt: skip
    with pytest.raises(InputError, match="hook_embed belongs to no layer"):
        student_layer("hook_embed", 4, 4)


def test_a_feature_that_fires_everywhere_is_not_judged() -> None:
    fired = csr_array(np.stack([np.ones(500), np.arange(500) % 2, np.arange(500) % 3 == 0], axis=1))
    nothing = torch.zeros(0)
    tokens = Tokens(nothing, np.zeros((0, 0), bool), fired, np.arange(500))
    assert _features(tokens, np.arange(500) % 5, np.array([True, True, True]), 0).tolist() == [1, 2]


def test_the_model_leaves_as_it_came(bridge: Any) -> None:
    before = {name: weight.clone() for name, weight in bridge.named_parameters()}
    hooks = [len(module._forward_hooks) for module in bridge.modules()]
    bridge.train()
    probe(bridge, HOOK, rows(), label="half", splits=1, pool="last")
    assert bridge.training
    bridge.eval()
    assert hooks == [len(module._forward_hooks) for module in bridge.modules()]
    assert all(torch.equal(weight, before[name]) for name, weight in bridge.named_parameters())
