"""Token sequences from files, datasets, token ids, stores and caches; and what is rejected as text."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.models import CONTEXT, PROSE, WIDTH
from tl_distill_floor import InputError, load_text, measure


def sequences(text: Any, tokenizer: Any, **options: Any) -> torch.Tensor:
    """Return all sequences of a text [sequence, position]."""
    return torch.stack(list(load_text(text, tokenizer, context_size=CONTEXT, **options).read()))


def test_sequences_hold_the_text_in_order(prose_file: Path, tokenizer: Any) -> None:
    rows = sequences(prose_file, tokenizer)
    assert rows.shape[1] == CONTEXT
    assert (rows[:, 0] == tokenizer.bos_token_id).all()
    assert (PROSE * 40).startswith(tokenizer.decode(rows[:, 1:].flatten()))


def test_sequences_without_a_beginning_token(prose_file: Path, tokenizer: Any) -> None:
    rows = sequences(prose_file, tokenizer, prepend_bos=False)
    assert (PROSE * 40).startswith(tokenizer.decode(rows.flatten()))


@pytest.mark.parametrize("suffix", [".txt", ".txt.gz", ".jsonl", ".jsonl.gz"])
def test_each_kind_of_file_gives_the_same_tokens(tmp_path: Path, tokenizer: Any, suffix: str, prose_file: Path) -> None:
    content = PROSE * 40
    if "jsonl" in suffix:
        content = json.dumps({"text": content, "id": 1}) + "\n\n"
    data = content.encode()
    file = tmp_path / f"text{suffix}"
    file.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    assert torch.equal(sequences(file, tokenizer), sequences(prose_file, tokenizer))


def test_separates_documents_by_a_beginning_token(tmp_path: Path, tokenizer: Any) -> None:
    file = tmp_path / "two.jsonl"
    file.write_text("".join(json.dumps({"text": PROSE}) + "\n" for _ in range(8)))
    rows = sequences(file, tokenizer)
    assert (rows[:, 1:] == tokenizer.bos_token_id).sum() >= 5


def test_reads_long_files_in_chunks(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tl_distill_floor.sources.text_files.CHUNK_CHARACTERS", 500)
    file = tmp_path / "long.txt"
    file.write_text((PROSE + "\n") * 10)
    text = "".join(tokenizer.decode(row[1:]) for row in sequences(file, tokenizer)).replace("<|end|>", "")
    assert ((PROSE + "\n") * 10).startswith(text)


def test_loads_the_embedded_text(tokenizer: Any) -> None:
    first = next(load_text(None, tokenizer, context_size=CONTEXT).read())
    assert first.shape == (CONTEXT,)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\xff\xfe\x00bad", "not UTF-8|NUL"),
        ("a.txt", b"some\x00thing" * 50, "NUL"),
        ("a.jsonl", b"not json\n", "line 1 is not JSON"),
        ("a.jsonl", b'{"text": "a"}\n{"words": 3}\n', "line 2 has no text"),
        ("a.jsonl", b"[1, 2]\n", "is not a JSON object"),
        ("a.txt.gz", b"no gzip at all", "cannot be read"),
        ("a.txt.gz", gzip.compress(b"cut short " * 1000, mtime=0)[:40], "cannot be read"),
        ("a.jsonl", b'{"text": "\\ud800 hello"}\n', "half a surrogate pair"),
        ("a.txt.gz", gzip.compress(b"damaged " * 1000, mtime=0)[:10] + b"\xff" * 40, "cannot be read"),
        ("a.pdf", b"%PDF", "neither .txt nor .jsonl"),
    ],
)
def test_rejects_files_that_are_not_text(
    tmp_path: Path, tokenizer: Any, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        sequences(tmp_path / name, tokenizer)


def test_rejects_missing_files_and_datasets(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no text file at"):
        load_text(tmp_path / "missing.txt", tokenizer)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="nobody/nothing is neither a text file nor a Hugging Face dataset"):
        sequences("nobody/nothing", tokenizer)


def test_streams_a_dataset(monkeypatch: pytest.MonkeyPatch, tokenizer: Any, prose_file: Path) -> None:
    import datasets

    received = {}

    def load_dataset(*args: Any, **kwargs: Any) -> Any:
        received.update(args=args, **kwargs)
        return datasets.Dataset.from_dict({"text": [PROSE * 40]}).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert torch.equal(sequences("owner/name:config", tokenizer), sequences(prose_file, tokenizer))
    assert received == {"args": ("owner/name", "config"), "split": "train", "streaming": True}


@pytest.mark.parametrize("bad", [torch.zeros(3), torch.zeros(2, 3), torch.zeros(0, 3, dtype=torch.long), 3, object()])
def test_rejects_token_ids_that_are_not_integers_in_rows(bad: Any) -> None:
    with pytest.raises(InputError, match="token ids must be integers"):
        load_text(bad, None)


def test_rejects_text_without_a_tokenizer(prose_file: Path) -> None:
    with pytest.raises(InputError, match="needs a tokenizer"):
        load_text(prose_file, None)


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning")  # raised by SAELens for its own rows
def test_reads_the_tokens_of_an_activations_store(bridge: Any, sae: Any, ids: torch.Tensor) -> None:
    from datasets import Dataset
    from sae_lens import ActivationsStore

    rows = Dataset.from_dict({"input_ids": ids.tolist()})
    store = ActivationsStore.from_sae(bridge, sae, rows, streaming=False, store_batch_size_prompts=8, total_tokens=40)
    assert (store.get_batch_tokens(2) == ids[:2]).all()
    n_processed = store.n_dataset_processed
    from_store, expected = measure(bridge, sae, store), measure(bridge, sae, ids)
    assert from_store.n_tokens == expected.n_tokens
    assert (from_store.firing_count == expected.firing_count).all()
    assert store.n_dataset_processed == n_processed
    assert (store.get_batch_tokens(2) == ids[2:4]).all()  # it goes on where it was


def test_measures_cached_activations_without_a_model(bridge: Any, sae: Any, ids: torch.Tensor, tmp_path: Path) -> None:
    """Compare activations in the form of SAELens's CacheActivationsRunner with those of the teacher itself."""
    from datasets import Array2D, Dataset, Features, Sequence, Value

    from tl_distill_floor.measuring.hooks import activation_reader

    hook = "blocks.1.hook_resid_post"
    ids = ids.clone()
    ids[:, 1:][ids[:, 1:] == 0] = 1
    with activation_reader(bridge, [hook]) as read:
        acts = read(ids)[0]
    shapes = Features({hook: Array2D((CONTEXT, WIDTH), "float32"), "token_ids": Sequence(Value("int32"), CONTEXT)})
    Dataset.from_dict({hook: acts.numpy(), "token_ids": ids.numpy()}, features=shapes).save_to_disk(tmp_path / "cache")
    cached, expected = measure(None, sae, tmp_path / "cache"), measure(bridge, sae, ids)
    assert (cached.firing_count == expected.firing_count).all()
    assert cached.n_tokens == expected.n_tokens
    assert cached.warnings
    with pytest.raises(InputError, match="leave out the hook point"):
        measure(None, sae, tmp_path / "cache", hook_name="blocks.0.hook_resid_post")


def test_rejects_text_without_a_teacher(sae: Any, ids: torch.Tensor) -> None:
    with pytest.raises(InputError, match="needs a teacher"):
        measure(None, sae, ids)
