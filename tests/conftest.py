"""Fixtures that several tests share: tiny random models and SAEs, and runs made with them. Nothing is downloaded."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.helpers.models import CONTEXT, FEATURES, HOOK, LAYERS, PROSE, VOCABULARY, WIDTH, save_teacher
from tests.helpers.probes import probe_result
from tl_distill_floor import Probes
from tl_distill_floor.results.probes import Decodability

# One thread per pytest worker and per process that a test starts, so that they do not compete for the cores.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
# Hypothesis has no time limit per example: on a busy machine it would fail at random.
settings.register_profile("project", deadline=None)
settings.load_profile("project")


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """Train a byte-level BPE tokenizer."""
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        [PROSE], trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<|end|>"], initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<|end|>", eos_token="<|end|>", name_or_path="tiny", model_max_length=10**6
    )


@pytest.fixture(scope="session")
def teacher_dir(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """Save the random teacher as a Hugging Face directory."""
    return save_teacher(tmp_path_factory.mktemp("models") / "tiny-neox", tokenizer, LAYERS)


@pytest.fixture(scope="session")
def bridge(teacher_dir: Path) -> Any:
    """Load the random teacher as a TransformerBridge."""
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_transformers(str(teacher_dir), device="cpu")


@pytest.fixture(scope="session")
def sae() -> Any:
    """Create an SAE for the residual stream after layer 1 that leaves a tenth of the variance unexplained.

    Its features are the directions of two random orthonormal bases and their negatives, with random thresholds and
    unequal decoder norms.
    """
    from sae_lens import StandardSAE, StandardSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    metadata = SAEMetadata(
        model_name="tiny-neox", hook_name="blocks.1.hook_resid_post", context_size=CONTEXT, prepend_bos=True
    )
    random_sae = StandardSAE(StandardSAEConfig(d_in=WIDTH, d_sae=FEATURES, metadata=metadata))
    random = torch.Generator().manual_seed(1)
    n_bases = FEATURES // (2 * WIDTH)
    bases = [torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=random))[0] for _ in range(n_bases)]
    directions = torch.cat([*bases, *(-basis for basis in bases)])
    norms, thresholds = 0.2 + torch.rand(FEATURES, generator=random), 2 * torch.rand(FEATURES, generator=random)
    with torch.no_grad():
        random_sae.W_dec.copy_(directions * norms[:, None])
        random_sae.W_enc.copy_((directions / (n_bases * norms[:, None])).T)
        random_sae.b_enc.copy_(-thresholds / (n_bases * norms))
        random_sae.b_dec.copy_(0.1 * torch.randn(WIDTH, generator=random))
    return random_sae


@pytest.fixture(scope="session")
def sae_dir(sae: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save the random SAE in SAELens's format."""
    directory = tmp_path_factory.mktemp("saes") / "tiny-sae"
    sae.save_model(directory)
    return directory


@pytest.fixture(scope="session")
def ids() -> torch.Tensor:
    """Return random token ids [40, 32]. Each row begins with the beginning-of-sequence token, which may occur again."""
    random = torch.Generator().manual_seed(2)
    token_ids = torch.randint(0, VOCABULARY, (40, CONTEXT), generator=random)
    token_ids[:, 0] = 0
    return token_ids


@pytest.fixture(scope="session")
def prose_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a text file."""
    file = tmp_path_factory.mktemp("text") / "prose.txt"
    file.write_text(PROSE * 40)
    return file


@pytest.fixture(scope="session")
def measured(
    teacher_dir: Path, sae_dir: Path, prose_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, Path]:
    """Run `tl-floor measure` with the random teacher; return (run directory, teacher directory, text file)."""
    from tests.helpers.cli import run

    directory = tmp_path_factory.mktemp("runs") / "tiny"
    options = ("--text", prose_file, "--batch-size", 8, "--steps", 20, "--widths", "8,16,24", "--out", directory)
    result = run("measure", teacher_dir, "--sae", sae_dir, *options)
    assert result.exit_code == 0, result.output
    return directory, teacher_dir, prose_file


@pytest.fixture(scope="session")
def distilled(measured: tuple[Path, Path, Path]) -> Path:
    """Train three students with `tl-floor distill` in the measured run; return the run directory."""
    from tests.helpers.cli import run
    from tests.helpers.records import QUICK

    directory, teacher, text = measured
    result = run("distill", teacher, "--text", text, "--widths", "8,16,24", "--out", directory, *QUICK)
    assert result.exit_code == 0, result.output
    assert "width16" in result.stdout
    assert "under-trained" in result.stdout
    assert f"Next: tl-floor calibrate {directory}" in " ".join(result.stdout.split())
    return directory


@pytest.fixture
def probes() -> Probes:
    """Return synthetic probe results."""
    results = [
        probe_result("teacher", None, 0.9),
        probe_result("student", 8, 0.7),
        probe_result("kept", 8, 0.76),
        probe_result("kept", 4, 0.6),
    ]
    features = Decodability("width8", 8, HOOK, 100, (3, 5), (0.9, 0.6), (0.4, -0.1), (True, False), (0.1, 0.8))
    return Probes("made", HOOK, "rows", "digest", tuple(results), (features,), warnings=("careful",))
