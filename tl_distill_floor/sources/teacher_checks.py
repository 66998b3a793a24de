"""Check a loaded teacher: its logits are those of plain transformers, no weight is random, its forward pass runs."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tl_distill_floor.annotations import HookedModel, Tokenizer
from tl_distill_floor.errors import InputError, reason_of
from tl_distill_floor.sources.context_lengths import longest_of_config
from tl_distill_floor.sources.devices import device_of

N_SEQUENCES, CONTEXT = 2, 48
"""Size of the batch on which logits are compared."""
TOLERANCE = 1e-3
"""Difference of log-probabilities, as a share of their standard deviation, that is rounding in fp32. Rounding is some
1e-6, and the wrong models that we know differ by 0.006 to 0.7."""
ROUNDING_TOLERANCE = 0.15
"""Difference that may be rounding in bf16; above `TOLERANCE` the teacher is checked in fp32."""
LEAST_LOG_PROBABILITY = -1e4
"""Log-probabilities below this count as this in a standard deviation."""
PASSAGE = (
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a"
    " wife. However little known the feelings or views of such a man may be on his first entering a neighbourhood, this"
    " truth is so well fixed in the minds of the surrounding families, that he is considered as the rightful property"
    " of some one or other of their daughters. Call me Ishmael. Some years ago, never mind how long precisely, having"
    " little or no money in my purse, and nothing particular to interest me on shore, I thought I would sail about a"
    " little and see the watery part of the world. It is a way I have of driving off the spleen, and regulating the"
    " circulation. In 1867, def f(x): return 2 * x + 1; the 3rd of May, at 7:45 a.m."
)
"""Text on which logits are compared: prose of the 19th century, digits and a line of code."""

_random_heads: WeakKeyDictionary[object, str] = WeakKeyDictionary()
"""For each loaded model whose unembedding is random, the name of its weights."""


@dataclass(frozen=True)
class PlainModel:
    """What plain transformers reports about a model, before TransformerLens changes its modules."""

    class_name: str
    ids: Int[Tensor, "batch position"]
    logits: Float[Tensor, "batch position vocabulary"] | None
    """None if transformers gives no logits for token ids alone."""
    failure: str
    """Why there are no logits; empty if there are."""
    random_head: str
    """Names of the weights outside the base model that the checkpoint does not have; empty if it has all."""
    unused_weights: str = ""
    """Names of weights of the checkpoint that the model does not have; empty if it has all."""


class PlainModelLoader:
    """A stand-in for a transformers class that is given to TransformerLens, and looks at each model that it loads.

    So the weights are loaded once, and no second copy of them is in memory.
    """

    def __init__(self) -> None:
        self.plain: PlainModel | None = None
        self.tokenizer: Tokenizer | None = None

    def from_pretrained(self, source: str, **options: Any) -> nn.Module:
        """Load a model as TransformerLens asks for it, and keep its logits.

        Args:
            source: directory or repository.
            **options: the options with which TransformerLens calls `from_pretrained`.

        Raises:
            InputError: see `inspect`.
        """
        from transformer_lens.model_bridge.sources.transformers import (
            determine_architecture_from_hf_config,
            get_hf_model_class_for_architecture,
        )

        model_class = get_hf_model_class_for_architecture(determine_architecture_from_hf_config(options["config"]))
        model, report = model_class.from_pretrained(source, **options, output_loading_info=True)
        of_hub: dict[str, Any] = {name: options[name] for name in ("revision", "token") if name in options}
        self.inspect(model, report, _own_tokenizer(source, of_hub))
        return model  # type: ignore[no-any-return]

    def inspect(self, model: nn.Module, report: dict[str, Any], tokenizer: Tokenizer | None) -> None:
        """Keep the logits of a model, its missing and its unused weights, and a copy of its tokenizer.

        Args:
            model: a transformers model.
            report: the loading information of `from_pretrained`.
            tokenizer: the model's own tokenizer, which TransformerLens has not changed; None if it has none.

        Raises:
            InputError: a weight of the base model is missing in the checkpoint.
        """
        self.tokenizer = copy.deepcopy(tokenizer)
        random_head = _missing_head(model, report)
        ids = _passage_ids(tokenizer, model)
        logits, failure = _plain_logits(model, ids)
        self.plain = PlainModel(type(model).__name__, ids, logits, failure, random_head, _unused_weights(model, report))


def check_against_plain(model: HookedModel, plain: PlainModel, load_in_fp32: Callable[[], object]) -> str:
    """Compare a teacher's logits with those of plain transformers, and remember if its unembedding is random.

    Log-probabilities are compared, since a processed model may shift all logits of a position.

    Args:
        model: the teacher.
        plain: what transformers reports about the same weights.
        load_in_fp32: loads and checks the same teacher in fp32. Called for a teacher in another dtype whose difference
            may be rounding or not.

    Returns:
        Why nothing could be compared; empty if the logits agree.

    Raises:
        InputError: the teacher computes another model, or its forward pass fails.
    """
    if plain.random_head:
        _random_heads[model] = plain.random_head
    ids = plain.ids.to(device_of(model))
    decoder = {"decoder_input": ids} if _is_encoder_decoder(getattr(model, "original_model", None)) else {}
    with torch.no_grad(), forward_errors(model):
        logits = model(ids, **decoder)
    if plain.logits is None:
        return plain.failure
    if not isinstance(logits, Tensor) or logits.shape[:2] != plain.logits.shape[:2]:
        return f"{type(model).__name__} returns no logits"
    size = min(logits.shape[-1], plain.logits.shape[-1])
    expected, actual = (x[..., :size].flatten(0, 1).cpu().float().log_softmax(-1) for x in (plain.logits, logits))
    if expected.isnan().any():
        return ""  # transformers gives NaN too, which the measurement reports
    is_fp32 = logits.dtype == plain.logits.dtype == torch.float32
    difference = relative_difference(expected, actual)
    if difference > (TOLERANCE if is_fp32 else ROUNDING_TOLERANCE):
        raise _other_model(expected, actual, plain.class_name, type(model).__name__)
    if difference > TOLERANCE:
        load_in_fp32()
    return ""


def relative_difference(
    expected: Float[Tensor, "token vocabulary"], actual: Float[Tensor, "token vocabulary"]
) -> float:
    """Compute how far log-probabilities are apart, as a share of their standard deviation over the vocabulary.

    Returns:
        The upper quartile over tokens. A single token may differ by more: a router of experts that is close to a tie
        may choose differently.

    Example:
        >>> relative_difference(torch.tensor([[-1.0, -3.0]]), torch.tensor([[-1.0, -3.0]]))
        0.0
    """
    # -inf in both is no difference; NaN, or -inf in one of them, is.
    difference = torch.where(expected == actual, 0.0, (expected - actual).abs()).nan_to_num(torch.inf, torch.inf)
    finite = expected.clamp(min=LEAST_LOG_PROBABILITY)
    spread = (finite - finite.mean(-1, keepdim=True)).square().mean(-1).sqrt().clamp(min=1e-3)
    return float((difference.square().mean(-1).sqrt() / spread).quantile(0.75, interpolation="higher"))


def check_head(model: HookedModel) -> None:
    """Raise an InputError if the unembedding of a loaded model is random, so that its logits mean nothing."""
    if names := _random_heads.get(model):
        raise InputError(
            f"the checkpoint of the teacher has no language-modelling head ({names} would be random), so no loss in"
            " nats can be measured; use --cost energy, or give a teacher with a head"
        )


def model_class(model: HookedModel) -> str:
    """Return the name of a model's class, of transformers if TransformerLens wraps one."""
    wrapped = vars(model).get("original_model") if isinstance(model, nn.Module) else None
    return type(model if wrapped is None else wrapped).__name__


@contextmanager
def forward_errors(model: HookedModel) -> Iterator[None]:
    """Turn an error that a model raises in its forward pass into an InputError; out of memory stays as it is."""
    try:
        yield
    except (InputError, MemoryError, OSError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError, NotImplementedError) as e:
        reason = reason_of(e)
        if "not enough memory" in reason:
            raise
        raise InputError(
            f"the forward pass of the teacher ({model_class(model)} as {type(model).__name__}) fails with"
            f" {type(e).__name__}: {reason}; give another teacher"
        ) from e


def _missing_head(model: nn.Module, report: dict[str, Any]) -> str:
    """Return the names of missing weights outside the base model; raise an InputError if others are missing."""
    missing = sorted(report.get("missing_keys", ()))
    has_head = getattr(model, "base_model", model) is not model
    in_base = [name for name in missing if not has_head or name.startswith(f"{model.base_model_prefix}.")]
    if in_base:
        raise InputError(
            f"the checkpoint has no weights for {_join(in_base)}, which transformers would initialise at random; give"
            " a complete checkpoint"
        )
    return _join(missing)


def _unused_weights(model: nn.Module, report: dict[str, Any]) -> str:
    """Return the names of weights of the checkpoint that the model does not have.

    Values of a module without weights are left out: earlier versions of transformers saved masks of attention.
    """
    modules = dict(model.named_modules())

    def is_weight(name: str) -> bool:
        module = name.rpartition(".")[0]
        owner = modules.get(module, modules.get(f"{getattr(model, 'base_model_prefix', '')}.{module}"))
        return owner is None or next(owner.parameters(recurse=False), None) is not None

    return _join([name for name in sorted(report.get("unexpected_keys", ())) if is_weight(name)])


def _join(names: list[str]) -> str:
    """Join the first names of a list, and say how many there are if that is not all."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _own_tokenizer(source: str, of_hub: dict[str, Any]) -> Tokenizer | None:
    """Load a model's tokenizer; None if it has none of its own, in which case TransformerLens may know another."""
    from transformers import AutoTokenizer

    try:
        tokenizer: Tokenizer = AutoTokenizer.from_pretrained(source, **of_hub)
    except Exception:
        return None  # damaged files raise whatever their reader raises; TransformerLens reads them next and reports it
    return tokenizer if knows_text(tokenizer) else None


def knows_text(tokenizer: Any) -> bool:
    """Return whether a tokenizer has any token of text.

    For a directory without the files of a tokenizer, transformers makes one that has only special tokens.
    """
    return bool(set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens))


def _passage_ids(tokenizer: Tokenizer | None, model: nn.Module) -> Int[Tensor, "batch position"]:
    """Tokenize the passage into a batch of sequences; repeat it if a tokenizer makes few tokens of it.

    Without a tokenizer, tokens from all of the vocabulary are taken.
    """
    config = model.config.get_text_config()  # type: ignore[union-attr, operator]
    vocabulary, size = int(getattr(config, "vocab_size", 1)), N_SEQUENCES * CONTEXT
    passage = range(0, vocabulary, max(1, vocabulary // size)) if tokenizer is None else tokenizer(PASSAGE)["input_ids"]
    ids = [number for number in passage if number < vocabulary] or [0]
    ids = (ids * (size // len(ids) + 1))[:size]
    return torch.tensor(ids).view(N_SEQUENCES, CONTEXT)[:, : longest_of_config(config) or CONTEXT]


@torch.no_grad()
def _plain_logits(
    model: nn.Module, ids: Int[Tensor, "batch position"]
) -> tuple[Float[Tensor, "batch position vocabulary"] | None, str]:
    """Return the logits of a transformers model on the CPU, or None and the reason why it gives none."""
    ids = ids.to(device_of(model))
    decoder = {"decoder_input_ids": ids} if _is_encoder_decoder(model) else {}
    try:
        with _default_attention(model):
            logits = getattr(model(input_ids=ids, **decoder), "logits", None)
    except Exception as error:  # a model may need more than token ids, and raises whatever it likes
        return None, f"{type(model).__name__} fails in transformers: {reason_of(error)}"
    if not isinstance(logits, Tensor) or logits.ndim != 3:
        return None, f"{type(model).__name__} gives no logits in transformers"
    return logits.cpu(), ""


@contextmanager
def _default_attention(model: Any) -> Iterator[None]:
    """Run a model with ALiBi with the attention that transformers takes by default; TransformerLens asks for "eager".

    Of Falcon these are two models: "eager" attention adds the biases of positions twice.
    """
    config: Any = getattr(model, "config", None)
    if not getattr(config, "alibi", False) or not getattr(model, "_supports_sdpa", False):
        yield
        return
    chosen, with_attentions = config._attn_implementation, config.output_attentions
    # TransformerLens sets both, and each alone means "eager" attention here.
    config.output_attentions = False
    config._attn_implementation = "sdpa"
    try:
        yield
    finally:
        config._attn_implementation = chosen
        config.output_attentions = with_attentions


def _is_encoder_decoder(model: nn.Module | None) -> bool:
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def _other_model(
    expected: Float[Tensor, "token vocabulary"], actual: Float[Tensor, "token vocabulary"], name: str, wrapper: str
) -> InputError:
    """Return the error for a teacher that computes another model."""
    apart = float((expected - actual).abs().nan_to_num(torch.inf, torch.inf).mean())
    kl = torch.where(expected > -torch.inf, expected.double().exp() * (expected - actual), 0.0).sum(-1).mean()
    return InputError(
        f"{wrapper} computes another model than transformers for {name}: on {len(expected)} tokens of text their"
        f" log-probabilities differ by {apart:.2g} nats on average (KL {float(kl):.2g} nats per token), so its"
        " activations are not those of this model; give another teacher, or use another version of transformer-lens"
    )
