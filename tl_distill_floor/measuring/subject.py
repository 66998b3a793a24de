"""What is measured: a teacher, a hook point, an SAE and a text that belong together, as a stream of activations."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.hooks import reader, resid_post, same_point
from tl_distill_floor.sources.saes import SaeSource, load_sae
from tl_distill_floor.sources.teachers import (
    CHECKPOINT,
    PROCESSING,
    Teacher,
    check_context,
    check_device,
    load_teacher,
    same_model,
)
from tl_distill_floor.sources.text import TextSource, load_text


class Batch(NamedTuple):
    """The activations of one batch of sequences, without the tokens that do not count."""

    activation: Float[Tensor, "token *d_model"]
    sequence: Int[Tensor, " token"]
    """Number of the text's sequence that the token stands in, counted from 0."""
    n_masked: int


@dataclass(frozen=True)
class Subject:
    """A stream of activations, the SAE to encode them, and what the result says of both."""

    sae: Any
    source: SaeSource
    teacher: Teacher | None
    text: TextSource
    hook_name: str
    settings: dict[str, Any]

    @property
    def text_name(self) -> str:
        return self.text.name

    @property
    def context_size(self) -> int:
        return self.text.context_size

    @property
    def tokens_per_batch(self) -> int:
        return int(self.settings["batch_size"]) * self.context_size

    def identity(self) -> dict[str, Any]:
        """The fields of `FeatureStats` that say what was measured."""
        return {
            "model_name": self.teacher.name if self.teacher else self.source.model_name or "unknown",
            "hook_name": self.hook_name,
            "sae_name": self.source.name,
            "text_name": self.text_name,
            "d_model": int(self.sae.cfg.d_in),
            "expected_l0": self.source.expected_l0,
            "settings": self.settings,
        }

    def warnings(self) -> list[str]:
        """What a reader of the numbers should know about how they came to be."""
        found = []
        trained_on, context = self.source.model_name, self.source.context_size
        if self.teacher and trained_on and not same_model(trained_on, self.teacher.name):
            found.append(f"the SAE says it was trained on {trained_on}, the teacher is {self.teacher.name}")
        if context and self.context_size > context:
            found.append(f"sequences of {self.context_size} tokens are longer than the SAE was trained on ({context})")
        wanted = {k: v for k, v in self.source.model_kwargs.items() if v and k in (*PROCESSING, *CHECKPOINT)}
        if self.teacher and wanted and not wanted.items() <= self.teacher.loading.items():
            found.append(f"the SAE was trained on a teacher loaded with {wanted}, which this one was not")
        if self.teacher is None:
            found.append("special tokens in cached activations are not known: only first positions were left out")
        return found

    @contextmanager
    def batches(self, done: int, n_tokens: int) -> Iterator[Iterator[Batch]]:
        """The batches of the sequences that hold tokens `done` to `n_tokens`.

        Raises:
            InputError: an id beyond the vocabulary, an activation of another width or not finite.
        """
        first, last = done // self.context_size, -(-n_tokens // self.context_size)
        size = int(self.settings["batch_size"])
        if self.teacher is None:
            assert self.text.read_cached is not None
            rows = islice(self.text.read_cached(self.hook_name), first, last)
            stacks = (torch.stack([activation for _, activation in group]) for group in _groups(rows, size))
            yield (
                self._checked(acts, _first_masked(acts.shape[:2]), number)
                for number, acts in zip(count(first, size), stacks, strict=False)
            )
            return
        model = self.teacher.model
        with reader(model, self.hook_name) as read:
            sequences = islice(self.text.read(), first, last)
            yield (
                self._batch(model, read, torch.stack(group), number)
                for number, group in zip(count(first, size), _groups(sequences, size), strict=False)
            )

    def _batch(
        self, model: Any, read: Callable[[Tensor], Tensor], ids: Int[Tensor, "batch position"], first: int
    ) -> Batch:
        largest, vocabulary = int(ids.max()), int(model.cfg.d_vocab)
        if largest >= vocabulary or int(ids.min()) < 0:
            raise InputError(
                f"the text holds token id {largest}, the teacher's vocabulary ends at {vocabulary - 1};"
                " use the teacher's own tokenizer"
            )
        counts = _first_masked(ids.shape) & ~torch.isin(ids, torch.tensor(special_ids(model), dtype=ids.dtype))
        return self._checked(read(ids.to(_device(model))), counts, first)

    def _checked(
        self, acts: Float[Tensor, "batch position *d_model"], counts: Bool[Tensor, "batch position"], first: int
    ) -> Batch:
        """The tokens that count of the sequences from number `first` on."""
        width, expected = acts[0, 0].numel(), int(self.sae.cfg.d_in)
        if width != expected:
            raise InputError(
                f"{self.hook_name} has {width} dimensions, the SAE {self.source.name} reads {expected};"
                " name an SAE of this model and layer with --sae"
            )
        kept = acts[counts.to(acts.device)].to(self.sae.device)
        kept = kept.flatten(1)
        if self.sae.cfg.reshape_activations == "hook_z" and self.teacher:
            heads = int(self.teacher.model.cfg.n_heads)
            kept = kept.reshape(len(kept), heads, -1)  # such an SAE joins the heads itself
        if not kept.isfinite().all():
            raise InputError(f"the activation at {self.hook_name} holds NaN or Inf; run the teacher with --dtype fp32")
        return Batch(kept, first + counts.nonzero()[:, 0], int((~counts).sum()))


def subject_of(
    model: Any,
    sae: Any = None,
    text: Any = None,
    *,
    layer: int | None = None,
    hook_name: str | None = None,
    context_size: int | None = None,
    batch_size: int = 16,
    device: str = "cpu",
    dtype: str = "fp32",
) -> Subject:
    """Load what has to be loaded and see that it belongs together.

    Args:
        model, sae, text: see `measure`.
        layer: the layer after which the residual stream is read; the SAE's own when left out.
        hook_name: the hook point, under HookedTransformer's or TransformerBridge's name; the SAE's own when left out.
        context_size: tokens a sequence; what the SAE was trained on when left out.
        batch_size: sequences a batch.
        device: torch device of what is loaded here.
        dtype: "fp32" or "bf16", of a teacher that is loaded here.

    Raises:
        InputError: something is missing, or the SAE is of another model, layer, hook point or width.
    """
    if batch_size < 1:
        raise InputError(f"the batch size must be at least 1 sequence, got {batch_size}")
    check_device(device)
    name = model if model is None or not hasattr(model, "cfg") else getattr(model.cfg, "model_name", None)
    source = load_sae(sae, model_name=None if name is None else str(name), layer=layer, device=device)
    teacher = (
        None if model is None else load_teacher(model, device=device, dtype=dtype, model_kwargs=source.model_kwargs)
    )
    hook = _hook_name(source, layer, hook_name)
    if teacher is None:
        loaded = load_text(text, None)
        if loaded.read_cached is None:
            raise InputError(
                f"{loaded.name} is text, which needs a teacher; name one, or a directory of cached activations"
            )
    else:
        _check_model(teacher, source)
        loaded = _text_for(teacher.model, source, text, context_size)
    settings = {
        "context_size": loaded.context_size,
        "batch_size": batch_size,
        "not_counted": "first position" if teacher is None else "special token ids and first position",
        "text": loaded.fingerprint,
        "teacher": teacher.loading if teacher else "cached activations",
        "sae": _digest(source.sae),
    }
    return Subject(source.sae, source, teacher, loaded, hook, settings)


def _digest(sae: Any) -> str:
    """Differs when the SAE does."""
    found = hashlib.sha256()
    for name, tensor in sorted(sae.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().double().sum(0).numpy().tobytes())
    return found.hexdigest()[:16]


def special_ids(model: Any) -> list[int]:
    """Ids of the beginning, end, padding and separator tokens, whose activations are not the text's."""
    from sae_lens.util import get_special_token_ids

    tokenizer = getattr(model, "tokenizer", None)
    return [] if tokenizer is None else sorted(get_special_token_ids(tokenizer))


def _hook_name(source: SaeSource, layer: int | None, given: str | None) -> str:
    from sae_lens.util import extract_layer_from_tlens_hook_name

    if given and source.hook_name and same_point(given) != same_point(source.hook_name):
        raise InputError(f"the SAE {source.name} reads {source.hook_name}, not {given}; leave the hook point to it")
    name = given or source.hook_name or (None if layer is None else resid_post(layer))
    if name is None:
        raise InputError(f"the SAE {source.name} does not say which layer it reads; set --layer")
    of_hook = extract_layer_from_tlens_hook_name(name)
    if layer is not None and of_hook is not None and layer != of_hook:
        raise InputError(
            f"the SAE {source.name} reads {name}, not layer {layer}; set --layer {of_hook}, or another --sae"
        )
    return name


def _check_model(teacher: Teacher, source: SaeSource) -> None:
    trained_on = source.model_name
    if teacher.named and trained_on and not same_model(trained_on, teacher.name):
        raise InputError(
            f"the SAE {source.name} was trained on {trained_on}, the teacher is {teacher.name};"
            f" measure {trained_on}, or see tl-floor saes {teacher.name}"
        )


def _text_for(model: Any, source: SaeSource, text: Any, context_size: int | None) -> TextSource:
    longest = int(model.cfg.n_ctx)
    check_context(model, context_size)
    tokenizer = getattr(model, "tokenizer", None)
    has_bos = tokenizer is not None and tokenizer.bos_token_id is not None
    loaded = load_text(
        text,
        tokenizer,
        context_size=context_size or min(source.context_size or 256, longest),
        prepend_bos=has_bos and source.prepend_bos is not False,
    )
    if loaded.context_size > longest:
        raise InputError(f"sequences of {loaded.context_size} tokens are longer than the teacher reads ({longest})")
    return loaded


def _first_masked(shape: Any) -> Bool[Tensor, "batch position"]:
    counts = torch.ones(tuple(shape), dtype=torch.bool)
    counts[:, 0] = False
    return counts


def _groups(rows: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while group := list(islice(rows, size)):
        yield group


def _device(model: Any) -> torch.device:
    first: Tensor = next(model.parameters())
    return first.device
