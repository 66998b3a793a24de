"""Find out how long the sequences are that a model reads, and of how many token ids, from its configuration."""

from torch import nn

from tl_distill_floor.annotations import HookedModel
from tl_distill_floor.errors import InputError

CONTEXT_FIELDS = (
    "n_positions",
    "max_position_embeddings",
    "max_context_length",
    "seq_length",
    "max_seq_len",
    "max_sequence_length",
)
"""Fields of a Hugging Face configuration that may have the largest number of tokens of a sequence."""


def longest_sequence(model: nn.Module | HookedModel) -> int | None:
    """Return the tokens of the longest sequence that a model reads; None if its configuration has no limit.

    Args:
        model: a `transformers` model, or a model with hook points.
    """
    if isinstance(model, HookedModel):
        return teacher_context(model)
    config = getattr(model, "config", None)
    return None if config is None else longest_of_config(config.get_text_config(decoder=True))


def teacher_context(model: HookedModel) -> int:
    """Return the tokens of the longest sequence that a model with hook points reads.

    TransformerLens states 2,048 for a family whose field it does not know, such as MPT.

    Args:
        model: a HookedTransformer or a TransformerBridge.
    """
    plain = vars(model).get("original_model")
    stated = int(model.cfg.n_ctx)
    return min(stated, (None if plain is None else longest_sequence(plain)) or stated)


def teacher_vocabulary(model: HookedModel) -> int:
    """Return the number of token ids that a model with hook points reads.

    A TransformerBridge states that of its tokenizer as soon as another one is set: fewer where the embedding is padded,
    and more where tokens were added to the tokenizer only.

    Args:
        model: a HookedTransformer or a TransformerBridge.
    """
    config = getattr(vars(model).get("original_model"), "config", None)
    own = None if config is None else getattr(config.get_text_config(decoder=True), "vocab_size", None)
    return own if isinstance(own, int) else int(model.cfg.d_vocab)


def check_vocabulary(model: HookedModel, largest: int) -> None:
    """Raise an InputError if the largest token id of a text is outside a model's vocabulary.

    Args:
        model: a HookedTransformer or a TransformerBridge.
        largest: the token id.
    """
    vocabulary = teacher_vocabulary(model)
    if largest >= vocabulary:
        raise InputError(
            f"the text holds token id {largest}, the teacher's vocabulary ends at {vocabulary - 1}; use the teacher's"
            " own tokenizer"
        )


def longest_of_config(config: object) -> int | None:
    """Return the tokens of the longest sequence by a configuration of text; None if it has no limit.

    Example:
        >>> from transformers import GPT2Config
        >>> longest_of_config(GPT2Config(n_positions=8))
        8
    """
    lengths = [getattr(config, name, None) for name in CONTEXT_FIELDS]
    return next((length for length in lengths if isinstance(length, int) and length > 1), None)


def cut_to_context(n_tokens: int, model: nn.Module | HookedModel) -> int:
    """Return a number of tokens, or that of the longest sequence that a model reads if this is less.

    Args:
        n_tokens: tokens that are wanted.
        model: a `transformers` model, or a model with hook points.
    """
    return min(n_tokens, longest_sequence(model) or n_tokens)
