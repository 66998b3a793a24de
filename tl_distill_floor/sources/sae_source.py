"""An SAE with what is known of its training, and the checks that every SAE passes before it is measured."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tl_distill_floor.annotations import SaeModule
from tl_distill_floor.errors import InputError
from tl_distill_floor.sources.sae_directory import NORMALISATION_ADVICE, UNSUPPORTED_ARCHITECTURES, SaeEntry
from tl_distill_floor.sources.sae_formats.hook_names import MODULE_NAME, dotted, hook_name_of

SUPPORTED_ARCHITECTURES = ("standard", "gated", "topk", "jumprelu", "abstopk", "matching_pursuit")
"""Architectures of SAELens that can be measured."""
METADATA_TYPES: dict[str, type | tuple[type, ...]] = {
    "hook_name": str, "model_name": str, "neuronpedia_id": str, "model_from_pretrained_kwargs": dict,
    "context_size": int, "prepend_bos": bool, "l0": (int, float), "sequence_separator_token": (int, str),
    "disable_concat_sequences": bool, MODULE_NAME: str,
}  # fmt: skip
"""Type of each metadata field that is read."""
LONGEST = 2**40
"""Tokens of a sequence that is longer than any."""


@dataclass(frozen=True)
class SaeSource:
    """An SAE with what SAELens's directory or its own metadata says about it."""

    sae: SaeModule
    """SAELens inference SAE. An SAE given in memory is never changed; if a change was needed, this is a copy."""
    name: str
    """Name: release:sae_id, owner/name:path, a path, or in-memory (architecture)."""
    architecture: str
    hook_name: str | None
    """Hook point in the SAE's metadata, such as blocks.12.hook_resid_post; None for a state dict."""
    model_name: str | None
    """Model that the SAE was trained on; None if not known."""
    model_kwargs: dict[str, Any]
    """Options with which the model was loaded when the SAE was trained (metadata.model_from_pretrained_kwargs)."""
    context_size: int | None
    """Tokens per sequence when the SAE was trained; None if not known."""
    prepend_bos: bool | None
    """Whether sequences began with a beginning-of-sequence token when the SAE was trained; None if not known."""
    expected_l0: float | None
    """Active features per token: the publisher's, or the k of the SAE's training; None if not known."""
    neuronpedia_id: str | None
    sequence_separator: str | None = None
    """Token between the documents of a sequence when the SAE was trained: "bos", "eos" or "none"; None if not known."""
    concatenates_documents: bool | None = None
    """Whether a sequence held several documents when the SAE was trained; None if not known."""
    module_name: str | None = None
    """Module of a `transformers` model whose output the SAE reads, such as layers.3.mlp, if a file names one; None if
    `hook_name` is stated as such."""
    counted_positions: tuple[int | None, ...] | None = None
    """Arguments of the `slice` of positions that the SAE was trained on, whose tokens are counted; None for all
    positions, or if not known."""
    excluded_ids: tuple[int, ...] = ()
    """Token ids that the SAE was not trained on, which are not counted, in rising order; special tokens are not counted
    anyway."""


def checked_source(sae: SaeModule, name: str, entry: SaeEntry | None = None) -> SaeSource:
    """Return an SAE with its metadata, or raise an InputError if measuring it would give wrong numbers.

    Args:
        sae: SAELens inference SAE.
        name: name of the SAE.
        entry: entry of SAELens's directory, for one of its SAEs.
    """
    from tl_distill_floor.sources.sae_formats.building import with_plain_decoder
    from tl_distill_floor.sources.sae_formats.transcoders import refuse_transcoder_config

    architecture, metadata = sae.cfg.architecture(), _read_metadata(sae)
    check_architecture(architecture, name)
    refuse_transcoder_config(name, metadata)
    _check_settings(sae, metadata, name)
    concatenates, l0 = metadata.get("disable_concat_sequences"), metadata.get("l0") or 0.0
    hook_name, module_name = metadata.get("hook_name"), metadata.get(MODULE_NAME)
    if hook_name is not None and (of_module := hook_name_of(hook_name)) not in (None, hook_name):
        hook_name, module_name = of_module, dotted(hook_name)  # SAELens trains on models of transformers too
    return SaeSource(
        sae=with_plain_decoder(sae),
        name=name,
        architecture=architecture,
        hook_name=hook_name,
        model_name=metadata.get("model_name"),
        model_kwargs=dict(metadata.get("model_from_pretrained_kwargs") or {}),
        context_size=metadata.get("context_size"),
        prepend_bos=metadata.get("prepend_bos"),
        # SAELens stored NaN if it did not measure it.
        expected_l0=(entry.expected_l0 if entry else None) or (l0 if 0 < l0 < math.inf else None) or _k_of(sae),
        neuronpedia_id=metadata.get("neuronpedia_id") or (entry.neuronpedia_id if entry else None),
        sequence_separator=_separator(metadata),
        concatenates_documents=None if concatenates is None else not concatenates,
        module_name=module_name,
        counted_positions=_counted_positions(metadata),
        excluded_ids=_excluded_ids(metadata),
    )


def _read_metadata(sae: SaeModule) -> dict[str, Any]:
    """Return the metadata of an SAE as a dictionary, since its attributes are None if missing or misspelt."""
    metadata = dict(sae.cfg.metadata.to_dict())
    for name, expected in METADATA_TYPES.items():
        value = metadata.get(name)
        if value is not None and not isinstance(value, expected):
            raise InputError(
                f"{name} in the SAE's configuration is {value!r:.80}, which is not of the expected type; correct it,"
                " or give another --sae"
            )
    return metadata


def _k_of(sae: SaeModule) -> float | None:
    """Return the k of a TopK SAE, which is its number of active features; None for any other SAE."""
    k = getattr(sae.cfg, "k", None)
    if k is None:
        return None
    if isinstance(k, bool) or not isinstance(k, int) or not 0 < k <= sae.cfg.d_sae:
        raise InputError(f"k in the SAE's configuration is {k!r:.80}, expected an integer from 1 to {sae.cfg.d_sae}")
    return float(k)


def _separator(metadata: Mapping[str, Any]) -> str | None:
    """Return the separator of documents as `SaeSource` names it; a token id as a string of digits."""
    if "sequence_separator_token" not in metadata:
        return None
    token = metadata["sequence_separator_token"]
    return "none" if token is None else str(token)


def _counted_positions(metadata: Mapping[str, Any]) -> tuple[int | None, ...] | None:
    bounds = metadata.get("seqpos_slice")
    if bounds is None:
        return None
    right = isinstance(bounds, list | tuple) and 1 <= len(bounds) <= 3 and tuple(bounds[2:]) != (0,)
    if not right or not all(bound is None or type(bound) is int for bound in bounds):
        raise InputError(
            f"seqpos_slice in the SAE's configuration is {bounds!r:.80}, which is not of the expected type; correct it,"
            " or give another --sae"
        )
    return None if slice(*bounds).indices(LONGEST) == (0, LONGEST, 1) else tuple(bounds)


def _excluded_ids(metadata: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the token ids of `exclude_special_tokens`, which can also be True for the tokenizer's special tokens."""
    excluded = metadata.get("exclude_special_tokens")
    if excluded is None or isinstance(excluded, bool):
        return ()
    if not isinstance(excluded, list | tuple) or not all(type(token) is int and token >= 0 for token in excluded):
        raise InputError(
            f"exclude_special_tokens in the SAE's configuration is {excluded!r:.80}, which is not of the expected type;"
            " correct it, or give another --sae"
        )
    return tuple(sorted(set(excluded)))


def check_architecture(architecture: str, name: str) -> None:
    """Raise an InputError if SAEs of an architecture cannot be measured."""
    if architecture in SUPPORTED_ARCHITECTURES:
        return
    reasons = [reason for kind, reason in UNSUPPORTED_ARCHITECTURES.items() if kind in architecture]
    if reasons:
        raise InputError(f"{name} is of the architecture {architecture}, and {reasons[0]}")
    raise InputError(
        f"{name} is of the unknown architecture {architecture!r}; give one of {', '.join(SUPPORTED_ARCHITECTURES)}"
    )


def _check_settings(sae: SaeModule, metadata: Mapping[str, Any], name: str) -> None:
    import torch

    normalisation = sae.cfg.normalize_activations
    if normalisation != "none":
        advice = NORMALISATION_ADVICE.get(normalisation, "give an SAE trained without it")
        raise InputError(f"{name} has normalize_activations={normalisation!r}; {advice}")
    head = metadata.get("hook_head_index")
    if head is not None:
        raise InputError(f"{name} reads only attention head {head} (hook_head_index); give an SAE of all heads")
    stored, of_encoder = sae.W_dec.dtype, getattr(sae, "W_enc", sae.W_dec).dtype
    if of_encoder != stored:
        raise InputError(f"{name} has W_enc in {of_encoder} and W_dec in {stored}; call sae.to({stored})")
    if torch.promote_types(stored, sae.dtype) != stored:  # half() and bfloat16() leave the dtype of the input
        raise InputError(f"{name} has weights in {stored} and encodes in {sae.dtype}; call sae.to({stored})")
    not_finite = [key for key, tensor in sae.state_dict().items() if not bool(torch.isfinite(tensor).all())]
    if not_finite:
        raise InputError(f"{name} holds NaN or Inf in {', '.join(not_finite)}; give one saved before training diverged")
