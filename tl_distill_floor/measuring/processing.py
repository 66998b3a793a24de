"""Compare how a teacher was loaded with how that of an SAE's training was.

TransformerLens can process weights in ways that leave the logits as they are. Only one of them changes the residual
stream: centred weights, `HookedTransformer.from_pretrained`'s default, give it a mean of 0 over its dimensions.
"""

import numpy as np
from jaxtyping import Float32

from tl_distill_floor.measuring.hooks import canonical_name
from tl_distill_floor.sources.sae_source import SaeSource
from tl_distill_floor.sources.teacher import Teacher
from tl_distill_floor.sources.teachers import PROCESSING_OPTIONS, loading_options

CENTRING = "center_writing_weights"
RESIDUAL_POINTS = ("hook_in", "hook_out", "hook_resid_mid", "mlp.hook_out", "attn.hook_out")
"""Hook points of a block whose activation is the residual stream, or is added to it."""
MAX_SHARE_CENTRED = 0.01
"""Squared norm of the means over the dimensions, as a share of that of random activations, up to which activations are
centred. Rounding gives some 1e-6 in half precision."""


def is_residual(hook_name: str) -> bool:
    """Return whether the activation at a hook point is the residual stream, or is added to it."""
    return canonical_name(hook_name).split(".", 2)[-1] in RESIDUAL_POINTS


def is_centred(activation: Float32[np.ndarray, "position width"]) -> bool:
    """Return whether activations have a mean of 0 over their dimensions.

    Example:
        >>> is_centred(np.array([[1.0, -1.0]], dtype=np.float32))
        True
    """
    along_ones = np.square(activation.astype(np.float64).sum(1)).sum()  # random activations have their squared norm
    return bool(along_ones <= MAX_SHARE_CENTRED * np.square(activation.astype(np.float64)).sum())


def loading_warnings(
    teacher: Teacher, source: SaeSource, hook_name: str, activation: Float32[np.ndarray, "position width"]
) -> list[str]:
    """Return the warnings about a teacher that may not be loaded as that of the SAE's training.

    Args:
        teacher: the teacher.
        source: the SAE.
        hook_name: the hook point that it reads.
        activation: activations there.
    """
    wanted = loading_options(source.model_kwargs)
    trained = "the SAE was trained on a teacher"
    if not teacher.is_in_memory:
        this_one = "which this one was not"
        return [] if wanted.items() <= teacher.loading.items() else [f"{trained} loaded with {wanted}, {this_one}"]
    warnings, stated = [], source.model_kwargs.get(CENTRING)
    if is_residual(hook_name):
        wanted = {name: value for name, value in wanted.items() if name not in PROCESSING_OPTIONS}
        has_layer_norm = str(getattr(teacher.model.cfg, "normalization_type", "")).startswith("LN")
        if stated is False and is_centred(activation):
            warnings.append(
                f"{trained} without {CENTRING}, and the weights of this one are centred; load it with"
                " HookedTransformer.from_pretrained_no_processing, or as a TransformerBridge"
            )
        if stated and has_layer_norm and not is_centred(activation):  # other models are not centred by this option
            warnings.append(
                f"{trained} with {CENTRING}=True, and the weights of this one are not centred; load it with"
                f" HookedTransformer.from_pretrained_no_processing(name, {CENTRING}=True)"
            )
    if wanted:
        warnings.append(f"{trained} loaded with {wanted}, and how this one was loaded is not known")
    return warnings
