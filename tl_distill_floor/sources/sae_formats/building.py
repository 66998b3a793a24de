"""Build SAELens SAEs from weights, and convert SAELens SAEs to an equivalent form that can be measured."""

import warnings
from typing import Any

from torch import Tensor

from tl_distill_floor.annotations import SaeModule
from tl_distill_floor.errors import InputError
from tl_distill_floor.sources.sae_formats.weights import SaeWeights


def build_sae(weights: SaeWeights, *, device: str, dtype: str) -> Any:
    """Build a SAELens StandardSAE, JumpReLUSAE, TopKSAE or AbsTopKSAE with these weights."""
    d_in, d_sae = weights.W_enc.shape
    top_k = "abstopk" if weights.signed else "topk"
    architecture = "jumprelu" if weights.threshold is not None else top_k if weights.k is not None else "standard"
    config: dict[str, Any] = {"architecture": architecture, "d_in": d_in, "d_sae": d_sae, "k": weights.k}
    config |= {"apply_b_dec_to_input": weights.subtract_b_dec, "device": device, "dtype": dtype}
    state = {name: getattr(weights, name) for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")}
    state = {name: tensor for name, tensor in state.items() if tensor is not None}
    metadata = {name: value for name, value in weights.metadata.items() if name != "layer"}
    return _rebuilt(config | {"metadata": metadata}, state)


def inference_form(sae: Any) -> Any:
    """Return the inference form of a SAELens TrainingSAE as a new SAE; that of a BatchTopK SAE is a JumpReLU SAE.

    Raises:
        InputError: a BatchTopK SAE was not trained, so that it has no threshold for single tokens.
    """
    if float(getattr(sae, "topk_threshold", 1.0)) <= 0.0:
        raise InputError(
            f"this {type(sae).__name__} has no threshold yet, so it cannot encode a single token; train it first"
        )
    state = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    sae.process_state_dict_for_saving_inference(state)
    return _rebuilt(sae.cfg.get_inference_sae_cfg_dict(), state)


def with_plain_decoder(sae: SaeModule) -> Any:
    """Return an equivalent SAE with reconstruction = codes @ W_dec + b_dec.

    A TopK SAE with `rescale_acts_by_decoder_norm` divides by ‖W_dec‖ when it decodes: a copy of it is returned with
    this factor folded into the encoder. Any other SAE is returned unchanged.
    """
    if not getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
        return sae
    rescaled = _rebuilt(sae.cfg.to_dict(), sae.state_dict())
    rescaled.fold_W_dec_norm()
    rescaled.cfg.rescale_acts_by_decoder_norm = False
    return rescaled


def _rebuilt(config: dict[str, Any], state: dict[str, Tensor]) -> Any:
    from sae_lens import SAE

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about model_from_pretrained_kwargs, which `load_teacher` applies
        sae = SAE.from_dict(config)
    sae.load_state_dict(state)
    return sae.eval().requires_grad_(False)
