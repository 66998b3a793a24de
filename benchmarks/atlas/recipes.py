"""The teachers of the atlas: architecture, tokenizer, text, training, and the widths of their students.

Most are trained here. A recipe with a `teacher` takes a model that is available already.
"""

from dataclasses import dataclass, replace
from typing import Literal

from transformers import GPT2Config, GPTNeoXConfig, LlamaConfig, PretrainedConfig, Qwen3Config

Family = Literal["gpt_neox", "llama", "qwen3", "gpt2"]


@dataclass(frozen=True)
class Recipe:
    """How one teacher, its SAEs and its students are made. Texts are named by their source in the corpus."""

    family: Family
    n_layers: int
    d_model: int
    vocab_size: int
    tied: bool
    """Whether the unembedding is the transposed embedding."""
    sources: tuple[str, ...]
    student_widths: tuple[int, ...]
    context_size: int = 256
    """Tokens per sequence."""
    batch_size: int = 16
    """Sequences per training step of the teacher."""
    epochs: float = 4.0
    """Passes over the training text."""
    lr: float = 3e-3
    student_tokens: int = 6_500_000
    """Training tokens of every student."""
    student_batch_size: int = 8
    """Sequences per training step of the students."""
    student_lr: float = 1e-2
    """Peak learning rate of the students."""
    student_heldout_tokens: int = 32_768
    """Held-out tokens that the losses of the students are measured on."""
    generated_tokens: int = 0
    """Tokens that the teacher generates for its students, in addition to the text of the sources."""
    sae_tokens: int = 2_000_000
    """Training tokens of every SAE."""
    prediction_tokens: int = 200_000
    """Held-out tokens that predictions are made from, at most."""
    prediction_steps: int = 1000
    """Training steps of the bottleneck students; the head floor takes a fifth of them."""
    teacher: str | None = None
    """Name of a teacher that is not trained here, for `load_teacher`; None for one that is. Its architecture is that of
    the other fields."""
    middle_sae: str | None = None
    """Name of a known SAE after the middle layer; None to train one."""
    is_shuffled: bool = False
    """Whether the sequences of the text are shuffled, so that a part of it has every source."""

    @property
    def layers(self) -> tuple[int, int]:
        """Layers whose residual stream has an SAE: the middle and the last one."""
        return self.n_layers // 2 - 1, self.n_layers - 1

    def config(self) -> PretrainedConfig:
        """Return the Hugging Face configuration of the teacher."""
        if self.family == "gpt_neox":
            return GPTNeoXConfig(
                vocab_size=self.vocab_size,
                hidden_size=self.d_model,
                intermediate_size=4 * self.d_model,
                num_hidden_layers=self.n_layers,
                num_attention_heads=self.d_model // 32,
                max_position_embeddings=self.context_size,
                bos_token_id=0,
                eos_token_id=0,
                tie_word_embeddings=self.tied,
                rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
            )
        if self.family in ("llama", "qwen3"):
            make = LlamaConfig if self.family == "llama" else Qwen3Config
            return make(
                vocab_size=self.vocab_size,
                hidden_size=self.d_model,
                intermediate_size=8 * self.d_model // 3,
                num_hidden_layers=self.n_layers,
                num_attention_heads=self.d_model // 32,
                num_key_value_heads=self.d_model // 64,
                head_dim=32,
                max_position_embeddings=self.context_size,
                bos_token_id=0,
                eos_token_id=0,
                tie_word_embeddings=self.tied,
            )
        return GPT2Config(
            vocab_size=self.vocab_size,
            n_embd=self.d_model,
            n_layer=self.n_layers,
            n_head=self.d_model // 32,
            n_positions=self.context_size,
            bos_token_id=0,
            eos_token_id=0,
            tie_word_embeddings=self.tied,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )


RECIPES: dict[str, Recipe] = {
    "tiny-prose": Recipe(
        family="gpt_neox",
        n_layers=4,
        d_model=256,
        vocab_size=4096,
        tied=False,
        sources=("sotu", "moby", "austen"),
        student_widths=(16, 32, 64, 96, 128, 192),
        epochs=2.0,
        sae_tokens=800_000,
        teacher="tiny-prose",
        middle_sae="tiny-prose-sae",
    ),
    "gpt2-novels": Recipe(
        family="gpt2",
        n_layers=2,
        d_model=128,
        vocab_size=1000,
        tied=True,
        sources=("austen", "moby"),
        student_widths=(8, 16, 24, 32, 48, 64, 96),
    ),
    "llama-speeches": Recipe(
        family="llama",
        n_layers=4,
        d_model=128,
        vocab_size=2048,
        tied=True,
        sources=("sotu",),
        student_widths=(8, 16, 32, 48, 64, 96),
        student_tokens=4_000_000,
    ),
    "neox-novels": Recipe(
        family="gpt_neox",
        n_layers=3,
        d_model=160,
        vocab_size=8000,
        tied=False,
        sources=("austen", "moby"),
        student_widths=(16, 32, 64, 80, 96, 128),
        epochs=3.0,
    ),
    "llama-novels": Recipe(
        family="llama",
        n_layers=2,
        d_model=192,
        vocab_size=1200,
        tied=False,
        sources=("austen", "moby"),
        student_widths=(12, 24, 48, 72, 96),
        epochs=0.7,
        student_tokens=4_000_000,
        student_batch_size=16,
        generated_tokens=3_000_000,
    ),
    "gpt2-speeches": Recipe(
        family="gpt2",
        n_layers=3,
        d_model=128,
        vocab_size=384,
        tied=True,
        sources=("sotu",),
        student_widths=(8, 16, 32, 48, 64, 96),
        epochs=2.5,
        student_tokens=5_000_000,
        student_batch_size=16,
        generated_tokens=4_000_000,
    ),
    "qwen3-code": Recipe(
        family="qwen3",
        n_layers=4,
        d_model=192,
        vocab_size=1024,
        tied=True,
        sources=("python",),
        student_widths=(12, 24, 48, 72, 96),
        epochs=2.0,
        student_tokens=8_000_000,
        student_batch_size=16,
        generated_tokens=4_000_000,
    ),
    "neox-speeches": Recipe(
        family="gpt_neox",
        n_layers=2,
        d_model=512,
        vocab_size=1500,
        tied=False,
        sources=("sotu",),
        student_widths=(32, 64, 128, 192, 256, 384),
        epochs=3.0,
        lr=2e-3,
    ),
    "gpt2-prose": Recipe(
        family="gpt2",
        n_layers=6,
        d_model=256,
        vocab_size=3000,
        tied=True,
        sources=("sotu", "moby", "austen"),
        student_widths=(16, 32, 64, 96, 128, 192),
        epochs=3.0,
    ),
    "llama-prose": Recipe(
        family="llama",
        n_layers=8,
        d_model=384,
        vocab_size=6000,
        tied=False,
        sources=("sotu", "moby", "austen"),
        student_widths=(24, 48, 96, 144, 192, 288),
        batch_size=32,
        epochs=3.0,
        lr=2e-3,
    ),
    "smollm2": Recipe(
        family="llama",
        n_layers=30,
        d_model=576,
        vocab_size=49_152,
        tied=True,
        sources=("sotu", "moby", "austen", "brown", "python"),
        student_widths=(24, 48, 96, 144, 216, 288),
        student_tokens=24_000_000,
        student_batch_size=64,
        student_lr=5e-3,
        sae_tokens=3_000_000,
        teacher="smollm2-135m",
        is_shuffled=True,
    ),
}
"""The teachers by name. The last four are meant for a GPU."""


def short(recipe: Recipe) -> Recipe:
    """Return a recipe of the same architecture with little training, to rehearse every step."""
    return replace(
        recipe,
        epochs=0.05,
        student_tokens=40_000,
        student_heldout_tokens=2048,
        sae_tokens=min(recipe.sae_tokens, 400_000),
        prediction_tokens=4096,
        prediction_steps=50,
    )
