"""Which tokens of a text are counted, and padded rows, which are measured as the rows without padding."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BatchEncoding

from tests.helpers.measurements import save_cache
from tests.helpers.models import CONTEXT, HOOK, VOCABULARY, save_family
from tl_distill_floor import (
    InputError,
    head_floor,
    load_sae,
    load_teacher,
    load_text,
    measure,
    predict_floor,
    predict_floors,
    train_sae,
)
from tl_distill_floor.measuring.hooks import activation_reader
from tl_distill_floor.measuring.replacement import differentiable_forward
from tl_distill_floor.measuring.sampling import score_gradient
from tl_distill_floor.measuring.token_stream import open_token_stream

PAD = 7
LENGTHS = (20, 9, 14, 3)


@pytest.fixture(scope="module")
def rows() -> list[torch.Tensor]:
    """Return rows of unequal lengths that begin with the beginning-of-sequence token, without padding."""
    random = torch.Generator().manual_seed(5)
    rows = [torch.randint(10, VOCABULARY, (length,), generator=random) for length in LENGTHS]
    return [torch.cat([torch.tensor([0]), row]) for row in rows]


@pytest.fixture
def padding_bridge(bridge: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the teacher with a tokenizer that pads with a token of its own."""
    monkeypatch.setattr(bridge, "tokenizer", copy.deepcopy(bridge.tokenizer))
    bridge.tokenizer.pad_token = bridge.tokenizer.convert_ids_to_tokens(PAD)
    assert bridge.tokenizer.pad_token_id == PAD
    return bridge


def padded(rows: list[torch.Tensor], side: str, pad_id: int, length: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows padded on one side, and their attention mask."""
    ids, mask = torch.full((len(rows), length), pad_id), torch.zeros(len(rows), length, dtype=torch.long)
    for number, row in enumerate(rows):
        where = slice(0, len(row)) if side == "right" else slice(length - len(row), None)
        ids[number, where], mask[number, where] = row, 1
    return ids, mask


def codes_of(bridge: Any, sae: Any, rows: list[torch.Tensor]) -> torch.Tensor:
    """Return the SAE's codes of all tokens but the first of each row, each row run without padding."""
    codes = []
    with activation_reader(bridge, [HOOK]) as read:
        for row in rows:
            (activation,) = read(row[None])
            codes.append(torch.relu((activation[0, 1:] - sae.b_dec) @ sae.W_enc + sae.b_enc))
    return torch.cat(codes).detach()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["encoding", "dataset", "ids", "mask of another token"])
def test_padding_takes_no_part(side: str, kind: str, padding_bridge: Any, sae: Any, rows: list[torch.Tensor]) -> None:
    from datasets import Dataset

    ids, mask = padded(rows, side, 11 if kind == "mask of another token" else PAD)
    with_mask = {"input_ids": ids.tolist(), "attention_mask": mask.tolist()}
    text = {"ids": ids, "dataset": Dataset.from_dict(with_mask)}.get(kind, BatchEncoding(with_mask))
    stats, codes = measure(padding_bridge, sae, text, cost="energy", force=True), codes_of(padding_bridge, sae, rows)
    assert stats.n_tokens == sum(LENGTHS)
    assert (stats.firing_count == (codes > 0).sum(0).numpy()).all()
    assert torch.allclose(torch.from_numpy(stats.sum_act), codes.double().sum(0), atol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_that_is_the_beginning_token_too(
    side: str, padding_bridge: Any, sae: Any, rows: list[torch.Tensor]
) -> None:
    longest, model = max(map(len, rows)), padding_bridge
    model.tokenizer.pad_token = model.tokenizer.bos_token
    stats = measure(model, sae, padded(rows, side, 0, longest)[0], cost="energy", force=True)
    assert (stats.firing_count == (codes_of(model, sae, rows) > 0).sum(0).numpy()).all()
    if side == "left":
        with pytest.raises(InputError, match="begins with token 0 more than once"):
            measure(model, sae, padded(rows, side, 0, longest + 2)[0])


def test_the_exact_cost_leaves_out_the_outputs_at_padding(
    padding_bridge: Any, sae: Any, rows: list[torch.Tensor]
) -> None:
    ids, mask = padded(rows[:2], "left", PAD)
    together = measure(padding_bridge, sae, {"input_ids": ids, "attention_mask": mask}, cost="ablation", force=True)
    alone = [measure(padding_bridge, sae, row[None], cost="ablation", force=True) for row in rows[:2]]
    expected = sum(stats.cost * stats.n_tokens for stats in alone) / sum(stats.n_tokens for stats in alone)
    assert torch.allclose(torch.from_numpy(together.cost), torch.from_numpy(expected), rtol=1e-3, atol=1e-7)


def test_the_fisher_cost_leaves_out_the_outputs_at_padding(
    padding_bridge: Any, sae: Any, rows: list[torch.Tensor]
) -> None:
    ids, mask = padded(rows, "left", PAD)
    stats = measure(padding_bridge, sae, {"input_ids": ids, "attention_mask": mask}, cost="fisher", force=True)
    expected = torch.zeros(len(sae.W_dec), dtype=torch.float64)
    with differentiable_forward(padding_bridge, [HOOK]) as run:
        for number, row in enumerate(rows):  # each without padding, with the samples of the padded row
            logits, (activation,) = run(row[None])
            uniform = torch.rand(ids.shape[1], generator=torch.Generator().manual_seed(number))[: len(row)]
            score = score_gradient(logits.detach(), uniform[None])
            (gradient,) = torch.autograd.grad(logits, activation, score)
            codes = torch.relu((activation.detach()[0, 1:] - sae.b_dec) @ sae.W_enc + sae.b_enc)
            per_feature = (codes * (gradient[0, 1:] @ sae.W_dec.T)).sum(0)
            expected += per_feature.detach().double().square() / 2
    assert torch.allclose(torch.from_numpy(stats.cost), expected / stats.n_tokens, rtol=1e-3, atol=1e-8)


def test_trains_an_sae_on_padded_rows(teacher_dir: Path, rows: list[torch.Tensor], tmp_path: Path) -> None:
    ids, mask = padded(rows, "left", PAD)
    text = {"input_ids": ids, "attention_mask": mask}
    out = tmp_path / "sae"
    assert train_sae(teacher_dir, text, layer=1, out=out, d_sae=16, k=2, context_size=CONTEXT, n_tokens=8192) == out


def test_padded_rows_are_not_distilled(bridge: Any, rows: list[torch.Tensor]) -> None:
    ids, mask = padded(rows, "left", PAD)
    stream = open_token_stream(load_teacher(bridge), {"input_ids": ids, "attention_mask": mask}, CONTEXT, 4)
    with pytest.raises(InputError, match="holds padded rows, which students are not trained on"):
        stream.read_sequences(100)


def test_rejects_padding_where_tokens_attend_to_later_ones(
    rows: list[torch.Tensor], tmp_path: Path, tokenizer: Any
) -> None:
    """A TransformerBridge says of BERT that it is causal."""
    ids, mask = padded(rows, "right", PAD)
    teacher = load_teacher(save_family(tmp_path, tokenizer, "Bert", head="ForMaskedLM"))
    stream = open_token_stream(teacher, {"input_ids": ids, "attention_mask": mask}, CONTEXT, 4)
    with pytest.raises(InputError, match="attend to later ones"):
        next(stream.batches(0, 100))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"input_ids": [[1, 2, 3]], "attention_mask": [[1, 0, 1]]}, "hides tokens between others"),
        ({"input_ids": [[1, 2, 3]], "attention_mask": [[1, 1]]}, "the attention_mask has the shape"),
        ({"input_ids": [[1, 2], [3, 4]], "attention_mask": [[1, 1]]}, "1 rows of attention_mask for 2 rows"),
        ([[1, -100, 3]], "not negative, got -100"),
        (torch.tensor([[1, -100, 3]]), "not negative, got -100"),
        ([[1.5, 2.0]], "token ids must be integers"),
        ([[5, 5, 5, 5, 1, 2], [5, 5, 5, 5, 5, 2]], "2 of 2 rows seem to be padded with token 5"),
    ],
)
def test_rejects_rows_whose_padding_is_not_known(text: Any, message: str, tokenizer: Any) -> None:
    with pytest.raises(InputError, match=message):
        list(load_text(text, tokenizer).read())


def test_counts_only_the_positions_that_the_sae_was_trained_on(bridge: Any, sae: Any, ids: torch.Tensor) -> None:
    restricted = copy.deepcopy(sae)
    restricted.cfg.metadata.seqpos_slice = [4, 20]
    stats = measure(bridge, restricted, ids, cost="energy", force=True)
    with activation_reader(bridge, [HOOK]) as read:
        (activation,) = read(ids)
    counted = activation[:, 4:20][ids[:, 4:20] != 0]
    codes = torch.relu((counted - sae.b_dec) @ sae.W_enc + sae.b_enc)
    assert stats.n_tokens == len(counted)
    assert (stats.firing_count == (codes > 0).sum(0).numpy()).all()
    assert "positions outside [4, 20]" in stats.settings["not_counted"]


def test_tokens_that_the_sae_was_not_trained_on_are_not_counted(
    bridge: Any, sae: Any, ids: torch.Tensor, tmp_path: Path
) -> None:
    """SAELens takes a list of token ids in place of True, for example those of a chat template."""
    excluding = copy.deepcopy(sae)
    excluding.cfg.metadata.exclude_special_tokens = [17, 5]
    stats = measure(bridge, excluding, ids, cost="energy", force=True)
    with activation_reader(bridge, [HOOK]) as read:
        (activation,) = read(ids)
    is_counted = ~torch.isin(ids, torch.tensor([0, 5, 17]))
    is_counted[:, 0] = False
    codes = torch.relu((activation[is_counted] - sae.b_dec) @ sae.W_enc + sae.b_enc)
    assert stats.n_tokens == len(codes) < measure(bridge, sae, ids, cost="energy", force=True).n_tokens
    assert (stats.firing_count == (codes > 0).sum(0).numpy()).all()
    assert stats.settings["not_counted"] == "special token ids and first position, token ids [5, 17]"
    cached = measure(None, excluding, save_cache(tmp_path / "cache", bridge, ids), force=True)
    assert (cached.n_tokens, cached.firing_count.tolist()) == (stats.n_tokens, stats.firing_count.tolist())
    assert cached.settings["not_counted"] == "token 0 and first position, token ids [5, 17]"
    with pytest.raises(InputError, match="other separators, positions or excluded tokens"):
        predict_floors(bridge, [sae, excluding], ids, widths=[4])
    for value in (True, False, None, []):
        excluding.cfg.metadata.exclude_special_tokens = value
        assert load_sae(excluding).excluded_ids == ()
    excluding.cfg.metadata.exclude_special_tokens = ["<|im_start|>"]
    with pytest.raises(InputError, match="exclude_special_tokens in the SAE's configuration is"):
        load_sae(excluding)


@pytest.mark.parametrize("length", [1, 65])
def test_rows_that_the_teacher_does_not_read_are_refused(length: int, bridge: Any, sae: Any) -> None:
    rows = torch.ones(4, length, dtype=torch.long)
    message = rf"has sequences of {length} tokens, and the teacher reads 2 to 64; give rows of token ids"
    with pytest.raises(InputError, match=message):
        measure(bridge, sae, rows)
    with pytest.raises(InputError, match=message):
        head_floor(bridge, rows)


def test_text_is_packed_as_for_the_sae(bridge: Any, sae: Any) -> None:
    joined = copy.deepcopy(sae)
    joined.cfg.metadata.sequence_separator_token = None
    joined.cfg.metadata.disable_concat_sequences = False
    documents = ["Call me Ishmael. ", "Some years ago, "] * 60
    stats = measure(bridge, joined, documents, cost="energy", force=True)
    assert stats.n_masked == (stats.n_tokens + stats.n_masked) // CONTEXT


def test_cached_activations_leave_out_the_beginning_token(
    bridge: Any, sae: Any, ids: torch.Tensor, tmp_path: Path
) -> None:
    assert (ids[:, 1:] == 0).any()
    cached = measure(None, sae, save_cache(tmp_path / "with", bridge, ids), force=True)
    expected = measure(bridge, sae, ids, cost="energy", force=True)
    assert cached.n_tokens == expected.n_tokens
    assert (cached.firing_count == expected.firing_count).all()
    assert "token 0, which begins every sequence of the cached activations, is not counted" in cached.warnings[0]
    unknown = measure(None, sae, save_cache(tmp_path / "without", bridge, ids, token_ids=False), force=True)
    assert unknown.n_tokens == 40 * (CONTEXT - 1)
    assert "no token ids are cached" in unknown.warnings[0]
    different = ids.clone()
    different[0, 0] = 5
    others = measure(None, sae, save_cache(tmp_path / "other", bridge, different), force=True)
    assert others.n_tokens == 40 * (CONTEXT - 1)
    assert "sequences begin with different tokens" in others.warnings[0]


@pytest.mark.parametrize("options", [{"revision": "step1000"}, {"checkpoint_index": 0}])
def test_how_a_teacher_in_memory_was_loaded_is_not_known(
    options: dict[str, Any], bridge: Any, sae: Any, ids: torch.Tensor
) -> None:
    of_checkpoint = copy.deepcopy(sae)
    of_checkpoint.cfg.metadata.model_from_pretrained_kwargs = options
    warnings = predict_floor(bridge, of_checkpoint, ids, cost="energy", steps=0, force=True).stats.warnings
    assert any("how this one was loaded is not known" in warning for warning in warnings)
