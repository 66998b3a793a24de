"""What is measured: SAEs attached to hook points of a teacher, and the stream of tokens or activations they read."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from shlex import quote
from typing import Any

import numpy as np
from jaxtyping import Float, Float64
from torch import Tensor

from tl_distill_floor.annotations import HookedModel, SaeLike, SaeModule, TeacherLike, TextLike
from tl_distill_floor.errors import InputError, as_integer
from tl_distill_floor.measuring.config import LoadConfig
from tl_distill_floor.measuring.hooks import canonical_name, resid_post
from tl_distill_floor.measuring.module_outputs import hook_point_of_module
from tl_distill_floor.measuring.processing import loading_warnings
from tl_distill_floor.measuring.token_stream import CachedActivationStream, TokenStream
from tl_distill_floor.results.feature_stats import RESIDUAL_STREAM
from tl_distill_floor.results.teacher_fingerprint import TeacherFingerprint
from tl_distill_floor.sources.context_lengths import teacher_context
from tl_distill_floor.sources.devices import check_device, main_device
from tl_distill_floor.sources.model_names import lookup_name, same_model, warn_of_missing_layers
from tl_distill_floor.sources.packing import packing_of
from tl_distill_floor.sources.saes import SaeSource, load_sae, sae_digest
from tl_distill_floor.sources.teacher import Teacher
from tl_distill_floor.sources.teachers import (
    check_context,
    load_teacher,
    loading_options,
    tokenizer_of,
    weights_digest,
)
from tl_distill_floor.sources.text import load_text

MAX_LISTED = 3
"""Hook points that a warning names."""


@dataclass(frozen=True)
class AttachedSae:
    """An SAE, and the hook point whose activations it reads."""

    source: SaeSource
    hook_name: str
    digest: str
    """Digest of the SAE's weights."""

    @property
    def sae(self) -> SaeModule:
        """The SAELens SAE."""
        sae: SaeModule = self.source.sae
        return sae

    @cached_property
    def decoder_norm(self) -> Float64[np.ndarray, " feature"]:
        """Norm of each decoder row, which need not be 1."""
        norms: np.ndarray = self.sae.W_dec.detach().double().norm(dim=-1).cpu().numpy()
        return norms

    def check_width(self, acts: Float[Tensor, "batch position *d_model"]) -> Float[Tensor, "batch position *d_model"]:
        """Return the activations, or raise an InputError if the SAE reads activations of another width or shape."""
        if acts.ndim < 3:
            raise InputError(
                f"{self.hook_name} has activations of shape {list(acts.shape)} without sequences, which cannot be"
                " measured; name another hook point"
            )
        width, expected = acts[0, 0].numel(), int(self.sae.cfg.d_in)
        if width != expected:
            raise InputError(
                f"{self.hook_name} has {width} dimensions, the SAE {self.source.name} reads {expected};"
                " name an SAE of this model and layer with --sae"
            )
        return acts


@dataclass(frozen=True)
class MeasurementJob:
    """SAEs, the stream that they read, and the settings that decide the result."""

    saes: tuple[AttachedSae, ...]
    stream: TokenStream | CachedActivationStream
    settings: dict[str, Any]

    @property
    def teacher(self) -> Teacher | None:
        """The teacher; None for cached activations."""
        return self.stream.teacher if isinstance(self.stream, TokenStream) else None

    @property
    def token_stream(self) -> TokenStream:
        """The stream of a job that runs a teacher."""
        assert isinstance(self.stream, TokenStream)
        return self.stream

    @property
    def cached_stream(self) -> CachedActivationStream:
        """The stream of a job without a teacher."""
        assert isinstance(self.stream, CachedActivationStream)
        return self.stream

    @property
    def model(self) -> HookedModel:
        """The teacher's model."""
        return self.token_stream.teacher.model

    @property
    def hook_names(self) -> list[str]:
        """The hook points that are read, each once."""
        return list(dict.fromkeys(attached.hook_name for attached in self.saes))

    def identity(self, attached: AttachedSae) -> dict[str, Any]:
        """Return the fields of `FeatureStats` that say what is measured."""
        source = attached.source
        return {
            "model_name": self.teacher.name if self.teacher else source.model_name or "unknown",
            "hook_name": attached.hook_name,
            "sae_name": source.name,
            "text_name": self.stream.text.name,
            "d_model": int(source.sae.cfg.d_in),
            "teacher_width": None if self.teacher is None else int(self.model.cfg.d_model),
            "expected_l0": source.expected_l0,
            "neuronpedia_id": source.neuronpedia_id,
            "settings": self.settings | {"sae": attached.digest},
        }

    def warnings(self, attached: AttachedSae, fingerprint: TeacherFingerprint | None) -> list[str]:
        """Return what a reader should know about how the numbers were measured.

        Args:
            attached: the SAE.
            fingerprint: that of the teacher, see `teacher_fingerprint`; None for cached activations.
        """
        source, teacher = attached.source, self.teacher
        warnings = [] if teacher is None else teacher.warnings
        if teacher and source.model_name and not same_model(source.model_name, teacher.name):
            warnings.append(
                f"the SAE was trained on {source.model_name}; whether the teacher ({teacher.name}) is that model is"
                " not known"
            )
        if teacher and (hooked := _hooks_of_user(teacher.model)):
            warnings.append(
                f"the teacher has hooks at {hooked}, which may change its activations; remove them with"
                " model.reset_hooks(including_permanent=True)"
            )
        if hooked := _hooks_of_user(attached.sae):
            warnings.append(
                f"the SAE has hooks at {hooked}, which may change its codes; remove them with"
                " sae.reset_hooks(including_permanent=True)"
            )
        if teacher and self.settings.get("cost") != "energy":
            warnings += warn_of_missing_layers(teacher.model, teacher.name)
        if teacher and (width := int(teacher.model.cfg.d_model)) != source.sae.cfg.d_in:
            warnings.append(
                f"{attached.hook_name} has {source.sae.cfg.d_in:,} dimensions, and the teacher {width:,}: a feature"
                " floor is that of a bottleneck of so many dimensions there, not that of a student of this width, and"
                " what trained students are expected to lose is not predicted from it"
            )
        elif teacher and self.settings.get("cost") != "energy" and not RESIDUAL_STREAM.fullmatch(attached.hook_name):
            warnings.append(
                f"{attached.hook_name} is not the residual stream, which a student narrows: what trained students are"
                " expected to lose is not predicted from its features"
            )
        if source.context_size and self.stream.context_size > source.context_size:
            warnings.append(
                f"sequences of {self.stream.context_size} tokens are longer than the SAE's training context"
                f" ({source.context_size})"
            )
        if teacher and tokenizer_of(teacher.model) is None:
            warnings.append(
                "the teacher has no tokenizer, so special tokens are not known: only first positions are left out; set"
                " model.tokenizer if the text has others"
            )
        if teacher and fingerprint:
            warnings += loading_warnings(teacher, source, attached.hook_name, fingerprint.activation)
        if isinstance(self.stream, CachedActivationStream):
            warnings.append(self.stream.warning())
        return warnings


def _hooks_of_user(model: HookedModel | SaeModule) -> str:
    """Return the names of the first hook points that hold a hook before anything is measured; empty if none does."""
    points = (name for name, point in model.hook_dict.items() if getattr(point, "fwd_hooks", None))
    return ", ".join(islice(points, MAX_LISTED))


def prepare_job(
    model: TeacherLike | None,
    saes: Sequence[SaeLike | None],
    text: TextLike | None = None,
    loading: LoadConfig | None = None,
    *,
    layers: Sequence[int | None] | None = None,
    hook_name: str | None = None,
) -> MeasurementJob:
    """Load a teacher, SAEs and a text, and check that they belong together.

    Args:
        model: see `measure`.
        saes: one or more SAEs, each as `measure` takes it.
        text: see `measure`.
        loading: how they are loaded; `LoadConfig()` if None.
        layers: for each SAE the layer after which the residual stream is read; None takes the SAE's own.
        hook_name: the hook point, by its HookedTransformer or TransformerBridge name; the SAE's own if None.

    Raises:
        InputError: something is missing, or an SAE is of another model, layer, hook point or width.
    """
    loading = loading or LoadConfig()
    if isinstance(saes, str) or not isinstance(saes, Sequence) or not saes:
        raise InputError("several SAEs are given as a list of at least one, such as [sae]")
    if layers and len(layers) != len(saes):
        raise InputError(f"there are {len(layers)} layers for {len(saes)} SAEs; give one layer, or None, for each SAE")
    device = main_device(loading.device)
    check_device(device)
    name = lookup_name(model)
    layers = [None if layer is None else as_integer("layer", layer) for layer in layers or [None] * len(saes)]
    sources = [
        load_sae(sae, model_name=name, layer=layer, device=device) for sae, layer in zip(saes, layers, strict=True)
    ]
    hooks = [_hook_name(source, layer, hook_name) for source, layer in zip(sources, layers, strict=True)]
    stream: TokenStream | CachedActivationStream
    if model is None:
        stream = _cached_stream(text, sources, hooks, loading.batch_size)
    else:
        kwargs = _shared_model_kwargs(sources)
        teacher = load_teacher(model, device=loading.device, dtype=loading.dtype, model_kwargs=kwargs)
        for source in sources:
            _check_model(teacher, source)
        if hook_name is None:
            hooks = [
                hook_point_of_module(teacher.model, hook, source.module_name) if source.module_name else hook
                for source, hook in zip(sources, hooks, strict=True)
            ]
        stream = _stream_for(teacher, sources, text, loading)
    attached = tuple(
        AttachedSae(source, hook, sae_digest(source.sae)) for source, hook in zip(sources, hooks, strict=True)
    )
    return MeasurementJob(attached, stream, _decisive_settings(stream, loading.batch_size))


def _decisive_settings(stream: TokenStream | CachedActivationStream, batch_size: int) -> dict[str, Any]:
    """Return the settings of the teacher and the text that decide the result."""
    teacher = stream.teacher if isinstance(stream, TokenStream) else None
    return {
        "context_size": stream.context_size,
        "batch_size": batch_size,
        "not_counted": _not_counted(stream),
        "text": stream.text.fingerprint,
        "teacher": "cached activations" if teacher is None else teacher.loading,
        "weights": None if teacher is None else weights_digest(teacher.model),
    }


def _cached_stream(
    text: TextLike | None, sources: Sequence[SaeSource], hooks: Sequence[str], batch_size: int
) -> CachedActivationStream:
    loaded = load_text(text, None)
    if loaded.cached is None:
        raise InputError(
            f"{loaded.name} is text, which needs a teacher; name one, or a directory of cached activations"
        )
    if len(sources) > 1:
        raise InputError("several SAEs need a teacher, not cached activations; name one, or measure them one by one")
    cached, module_name = loaded.cached.hook_names, sources[0].module_name
    hook_name = module_name if module_name in cached and hooks[0] not in cached else hooks[0]
    return CachedActivationStream(loaded, hook_name, batch_size, sources[0].counted_positions, sources[0].excluded_ids)


def _not_counted(stream: TokenStream | CachedActivationStream) -> str:
    """Return which tokens are not counted."""
    excluded = f", token ids {list(stream.excluded_ids)}" if stream.excluded_ids else ""
    if isinstance(stream, CachedActivationStream):
        token = stream.cached.first_token
        return ("first position" if token is None else f"token {token} and first position") + excluded
    outside = "" if stream.positions is None else f", positions outside {list(stream.positions)}"
    return f"special token ids and first position{outside}{excluded}"


def _stream_for(
    teacher: Teacher, sources: Sequence[SaeSource], text: TextLike | None, loading: LoadConfig
) -> TokenStream:
    """Load the text as the SAEs were trained: their context size, and a BOS token or none."""
    check_context(teacher.model, loading.context_size)
    if len({source.prepend_bos is not False for source in sources}) > 1:
        raise InputError("some of the SAEs were trained with a beginning-of-text token; measure them one by one")
    if len({(packing_of(source), source.counted_positions, source.excluded_ids) for source in sources}) > 1:
        raise InputError(
            "the SAEs were trained on text with other separators, positions or excluded tokens; measure them one by one"
        )
    trained_on = min(source.context_size or 256 for source in sources)
    tokenizer = tokenizer_of(teacher.model)
    has_bos = tokenizer is not None and tokenizer.bos_token_id is not None
    prepend_bos = has_bos and sources[0].prepend_bos is not False
    size = loading.context_size or min(trained_on, teacher_context(teacher.model))
    loaded = load_text(text, tokenizer, context_size=size, prepend_bos=prepend_bos, packing=packing_of(sources[0]))
    first = sources[0]
    return TokenStream(teacher, loaded, loading.batch_size, prepend_bos, first.counted_positions, first.excluded_ids)


def _shared_model_kwargs(sources: Sequence[SaeSource]) -> dict[str, Any]:
    """Return how the SAEs need the teacher loaded, or raise an InputError if they differ."""
    wanted = [loading_options(source.model_kwargs) for source in sources]
    other = next((options for options in wanted if options != wanted[0]), None)
    if other is not None:
        raise InputError(
            f"the SAEs were trained on teachers loaded in different ways ({wanted[0]}, and {other}); measure them one"
            " by one"
        )
    return wanted[0]


def _hook_name(source: SaeSource, layer: int | None, given: str | None) -> str:
    from sae_lens.util import extract_layer_from_tlens_hook_name

    if given and source.hook_name and canonical_name(given) != canonical_name(source.hook_name):
        raise InputError(f"the SAE {source.name} reads {source.hook_name}, not {given}; leave out the hook point")
    name = given or source.hook_name or (None if layer is None else resid_post(layer))
    if name is None:
        raise InputError(f"the layer that the SAE {source.name} reads is not known; set --layer")
    hook_layer = extract_layer_from_tlens_hook_name(name)
    if layer is not None and hook_layer is not None and layer != hook_layer:
        raise InputError(
            f"the SAE {source.name} reads {name}, not layer {layer}; set --layer {hook_layer}, or another --sae"
        )
    return name


def _check_model(teacher: Teacher, source: SaeSource) -> None:
    trained_on = source.model_name
    if teacher.has_public_name and trained_on and not same_model(trained_on, teacher.name):
        raise InputError(
            f"the SAE {source.name} was trained on {trained_on}, the teacher is {teacher.name};"
            f" measure {trained_on}, or see tl-floor saes {quote(teacher.name)}"
        )
