"""What is measured: a teacher, a hook point, an SAE and a text that belong together, as a stream of activations."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count, islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.hooks import resid_post, same_point
from tl_distill_floor.sources.saes import SaeSource, load_sae
from tl_distill_floor.sources.teachers import (
    CHECKPOINT,
    PROCESSING,
    Teacher,
    check_context,
    check_device,
    load_teacher,
    main_device,
    same_model,
)
from tl_distill_floor.sources.text import TextSource, load_text

if TYPE_CHECKING:
    from tl_distill_floor.measuring.splicing import Splicer


class Batch(NamedTuple):
    """What one hook point gives of one batch of sequences: of the tokens that count, and of the whole batch."""

    activation: Float[Tensor, "token *d_model"]
    sequence: Int[Tensor, " token"]
    """Number of the text's sequence that the token stands in, counted from 0."""
    position: Int[Tensor, " token"]
    """Place of the token in its sequence."""
    first: int
    """Number of the batch's first sequence."""
    n_sequences: int
    n_masked: int
    ids: Int[Tensor, "batch position"] | None = None
    """Token ids of the whole sequences; None of cached activations."""
    gradients: tuple[Float[Tensor, "token d_model"], ...] = ()
    """Slopes of the log-probability of sampled outputs, one for each drawing; see `importance`."""
    teacher: "Splicer | None" = None
    """The teacher, to be run again with other activations."""

    @property
    def row(self) -> Int[Tensor, " token"]:
        """Place of the token's sequence in the batch."""
        return self.sequence - self.first


@dataclass(frozen=True)
class Reading:
    """An SAE, and the hook point that it reads."""

    source: SaeSource
    hook_name: str
    digest: str
    """Differs when the SAE does."""

    @property
    def sae(self) -> Any:
        return self.source.sae

    @cached_property
    def decoder_norm(self) -> Float64[np.ndarray, " feature"]:
        """‖w_i‖ of every decoder row: SAEs need not have rows of norm 1."""
        norms: np.ndarray = self.sae.W_dec.detach().double().norm(dim=-1).cpu().numpy()
        return norms

    def checked(self, acts: Float[Tensor, "batch position *d_model"]) -> Float[Tensor, "batch position *d_model"]:
        """Raise an InputError unless the SAE reads activations of this width."""
        width, expected = acts[0, 0].numel(), int(self.sae.cfg.d_in)
        if width != expected:
            raise InputError(
                f"{self.hook_name} has {width} dimensions, the SAE {self.source.name} reads {expected};"
                " name an SAE of this model and layer with --sae"
            )
        return acts


@dataclass(frozen=True)
class Subject:
    """A teacher and a text, the SAEs that read it, and what the results say of all of them."""

    readings: tuple[Reading, ...]
    teacher: Teacher | None
    text: TextSource
    settings: dict[str, Any]

    @property
    def context_size(self) -> int:
        return self.text.context_size

    @property
    def batch_size(self) -> int:
        return int(self.settings["batch_size"])

    @property
    def tokens_per_batch(self) -> int:
        return self.batch_size * self.context_size

    def identity(self, reading: Reading) -> dict[str, Any]:
        """The fields of `FeatureStats` that say what was measured."""
        source = reading.source
        return {
            "model_name": self.teacher.name if self.teacher else source.model_name or "unknown",
            "hook_name": reading.hook_name,
            "sae_name": source.name,
            "text_name": self.text.name,
            "d_model": int(source.sae.cfg.d_in),
            "expected_l0": source.expected_l0,
            "neuronpedia_id": source.neuronpedia_id,
            "settings": self.settings | {"sae": reading.digest},
        }

    def warnings(self, reading: Reading) -> list[str]:
        """What a reader of the numbers should know about how they came to be."""
        found, source = [], reading.source
        trained_on, context = source.model_name, source.context_size
        if self.teacher and trained_on and not same_model(trained_on, self.teacher.name):
            found.append(f"the SAE says it was trained on {trained_on}, the teacher is {self.teacher.name}")
        if context and self.context_size > context:
            found.append(f"sequences of {self.context_size} tokens are longer than the SAE was trained on ({context})")
        wanted = {k: v for k, v in source.model_kwargs.items() if v and k in (*PROCESSING, *CHECKPOINT)}
        if self.teacher and wanted and not wanted.items() <= self.teacher.loading.items():
            found.append(f"the SAE was trained on a teacher loaded with {wanted}, which this one was not")
        if self.teacher is None:
            found.append("special tokens in cached activations are not known: only first positions were left out")
        return found

    def sequences(self, done: int, n_tokens: int) -> Iterator[tuple[int, Int[Tensor, "batch position"]]]:
        """(number of the first, token ids) of the batches that hold tokens `done` to `n_tokens` of the text.

        Raises:
            InputError: an id beyond the teacher's vocabulary.
        """
        assert self.teacher is not None
        first, last = done // self.context_size, -(-n_tokens // self.context_size)
        groups = _groups(islice(self.text.read(), first, last), self.batch_size)
        for number, group in zip(count(first, self.batch_size), groups, strict=False):
            yield number, self._in_vocabulary(torch.stack(group)).to(device_of(self.teacher.model))

    def rows(self, n_tokens: int) -> Int[Tensor, "sequence position"]:
        """The first sequences of the text, on the CPU: so many that they hold `n_tokens`, or all.

        Raises:
            InputError: an id beyond the teacher's vocabulary.
        """
        found = [ids.cpu() for _, ids in self.sequences(0, n_tokens)]
        return torch.cat(found) if found else torch.zeros((0, self.context_size), dtype=torch.long)

    def cached(self, done: int, n_tokens: int) -> Iterator[tuple[int, Float[Tensor, "batch position *d_model"]]]:
        """(number of the first, activations) of the same batches where activations were cached."""
        assert self.text.read_cached is not None
        first, last = done // self.context_size, -(-n_tokens // self.context_size)
        rows = islice(self.text.read_cached(self.readings[0].hook_name), first, last)
        groups = _groups((activation for _, activation in rows), self.batch_size)
        yield from zip(count(first, self.batch_size), map(torch.stack, groups), strict=False)

    def counts(self, ids: Int[Tensor, "batch position"]) -> Bool[Tensor, "batch position"]:
        """The tokens that count: no special ones, and not the first of a sequence."""
        assert self.teacher is not None
        special = torch.tensor(special_ids(self.teacher.model), dtype=ids.dtype, device=ids.device)
        return first_masked(ids.shape).to(ids.device) & ~torch.isin(ids, special)

    def _in_vocabulary(self, ids: Int[Tensor, "batch position"]) -> Int[Tensor, "batch position"]:
        assert self.teacher is not None
        largest, vocabulary = int(ids.max()), int(self.teacher.model.cfg.d_vocab)
        if largest >= vocabulary or int(ids.min()) < 0:
            raise InputError(
                f"the text holds token id {largest}, the teacher's vocabulary ends at {vocabulary - 1};"
                " use the teacher's own tokenizer"
            )
        return ids


def subject_of(
    model: Any,
    saes: Sequence[Any],
    text: Any = None,
    *,
    layers: Sequence[int | None] | None = None,
    hook_name: str | None = None,
    context_size: int | None = None,
    batch_size: int = 16,
    device: str = "cpu",
    dtype: str = "fp32",
) -> Subject:
    """Load what has to be loaded and see that it belongs together.

    Args:
        model, text: see `measure`.
        saes: one or more, each as `measure` takes it.
        layers: for each SAE the layer after which the residual stream is read; the SAE's own where it is None.
        hook_name: the hook point, under HookedTransformer's or TransformerBridge's name; the SAE's own when left out.
        context_size: tokens a sequence; what the SAEs were trained on when left out.
        batch_size: sequences a batch.
        device: torch device of what is loaded here, or "auto", see `load_teacher`.
        dtype: "fp32" or "bf16", of a teacher that is loaded here.

    Raises:
        InputError: something is missing, or an SAE is of another model, layer, hook point or width.
    """
    if batch_size < 1:
        raise InputError(f"the batch size must be at least 1 sequence, got {batch_size}")
    check_device(main_device(device))
    given = getattr(model.cfg, "model_name", None) if hasattr(model, "cfg") else model
    name = None if given is None else str(given)
    layers = [None] * len(saes) if layers is None else layers
    sources = [
        load_sae(sae, model_name=name, layer=layer, device=main_device(device))
        for sae, layer in zip(saes, layers, strict=True)
    ]
    hooks = [_hook_name(source, layer, hook_name) for source, layer in zip(sources, layers, strict=True)]
    teacher = None if model is None else load_teacher(model, device=device, dtype=dtype, model_kwargs=_kwargs(sources))
    if teacher is None:
        loaded = load_text(text, None)
        if loaded.read_cached is None or len(sources) > 1:
            raise InputError(
                f"{loaded.name} is text, which needs a teacher; name one, or a directory of cached activations"
                if loaded.read_cached is None
                else "several SAEs need a teacher, not cached activations; name one, or measure them one by one"
            )
    else:
        for source in sources:
            _check_model(teacher, source)
        loaded = _text_for(teacher.model, sources, text, context_size)
    settings = {
        "context_size": loaded.context_size,
        "batch_size": batch_size,
        "not_counted": "first position" if teacher is None else "special token ids and first position",
        "text": loaded.fingerprint,
        "teacher": teacher.loading if teacher else "cached activations",
    }
    readings = tuple(Reading(*each, digest_of(each[0].sae)) for each in zip(sources, hooks, strict=True))
    return Subject(readings, teacher, loaded, settings)


def training_subject(teacher: Teacher, text: Any, context_size: int, batch_size: int) -> Subject:
    """A teacher and a text that something is to be trained on, packed as it is measured; no SAE reads it.

    Raises:
        InputError: the text cannot be loaded, or its sequences are longer than the teacher reads.
    """
    tokenizer = getattr(teacher.model, "tokenizer", None)
    has_bos = tokenizer is not None and tokenizer.bos_token_id is not None
    loaded = load_text(text, tokenizer, context_size=context_size, prepend_bos=has_bos)
    check_context(teacher.model, loaded.context_size)
    return Subject((), teacher, loaded, {"batch_size": batch_size, "prepend_bos": has_bos})


def _kwargs(sources: Sequence[SaeSource]) -> dict[str, Any]:
    """How the SAEs want the teacher loaded, all alike."""
    heeded = [
        {k: v for k, v in source.model_kwargs.items() if v and k in (*PROCESSING, *CHECKPOINT)} for source in sources
    ]
    if any(each != heeded[0] for each in heeded):
        raise InputError(
            f"the SAEs were trained on teachers loaded in different ways ({heeded[0]}, and"
            f" {next(each for each in heeded if each != heeded[0])}); measure them one by one"
        )
    return sources[0].model_kwargs


def digest_of(sae: Any) -> str:
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


def _text_for(model: Any, sources: Sequence[SaeSource], text: Any, context_size: int | None) -> TextSource:
    longest = int(model.cfg.n_ctx)
    check_context(model, context_size)
    if len({source.prepend_bos is not False for source in sources}) > 1:
        raise InputError("some of the SAEs were trained with a beginning-of-text token; measure them one by one")
    trained_on = min(source.context_size or 256 for source in sources)
    tokenizer = getattr(model, "tokenizer", None)
    has_bos = tokenizer is not None and tokenizer.bos_token_id is not None
    loaded = load_text(
        text,
        tokenizer,
        context_size=context_size or min(trained_on, longest),
        prepend_bos=has_bos and sources[0].prepend_bos is not False,
    )
    if loaded.context_size > longest:
        raise InputError(f"sequences of {loaded.context_size} tokens are longer than the teacher reads ({longest})")
    return loaded


def first_masked(shape: Any) -> Bool[Tensor, "batch position"]:
    counts = torch.ones(tuple(shape), dtype=torch.bool)
    counts[:, 0] = False
    return counts


def _groups(rows: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while group := list(islice(rows, size)):
        yield group


def as_read(sae: Any, activation: Float[Tensor, "token *d_model"], n_heads: int) -> Float[Tensor, "token *d_in"]:
    """Activations as an SAE takes them: on its device, and by heads where it joins these itself."""
    flat = activation.to(sae.device).flatten(1)
    by_heads = sae.cfg.reshape_activations == "hook_z"
    return flat.reshape(len(flat), n_heads, -1) if by_heads else flat


def codes_of(sae: Any, activation: Float[Tensor, "token *d_model"], n_heads: int) -> Float[Tensor, "token feature"]:
    """What an SAE finds in activations, in fp32."""
    found: Tensor = sae.encode(as_read(sae, activation, n_heads).to(sae.dtype)).flatten(1).float()
    return found


def device_of(model: Any) -> torch.device:
    first: Tensor = next(model.parameters())
    return first.device
