"""Find the tokens that decoder rows promote: the product of decoder rows and unembedding."""

import numpy as np
import torch
from jaxtyping import Float, Int32
from torch import Tensor

from tl_distill_floor.annotations import HookedModel
from tl_distill_floor.measuring.processing import is_residual
from tl_distill_floor.measuring.strongest_contexts import token_decoder
from tl_distill_floor.results.contexts import NO_TOKEN

N_PROMOTED = 6
"""Promoted tokens per feature."""
LOGITS_AT_ONCE = 2**23
"""Logits held at a time: 32 MiB in fp32."""


def promoted_strings(
    model: HookedModel, W_dec: Float[Tensor, "feature *d_model"], hook_name: str
) -> list[tuple[str, ...]]:
    """Return the strings of the tokens that each decoder row promotes.

    Args:
        model: a HookedTransformer or TransformerBridge.
        W_dec: decoder rows.
        hook_name: the SAE's hook point. Promoted tokens are known for the residual stream and what is added to it.

    Returns:
        For each row its tokens, the largest increase of the logit first; empty if they are not known. A token is its id
        in angle brackets if the model has no tokenizer.
    """
    if not is_residual(hook_name):
        return [()] * len(W_dec)
    tokenizer = getattr(model, "tokenizer", None)
    decode = "⟨{}⟩".format if tokenizer is None else token_decoder(tokenizer)
    ids = find_promoted_tokens(model, W_dec)
    return [tuple(decode(token) for token in row if token != NO_TOKEN) for row in ids.tolist()]


@torch.no_grad()
def find_promoted_tokens(
    model: HookedModel, W_dec: Float[Tensor, "feature *d_model"], n: int = N_PROMOTED
) -> Int32[np.ndarray, "feature promoted"]:
    """Find the tokens whose logits each decoder row increases most.

    The change of the logits for a row w is unembed(ln_final(c · w)) − unembed(ln_final(0)), with c · w of root mean
    square 1: the direct path from the residual stream, without the layers between. The model is not changed.

    Args:
        model: a HookedTransformer or TransformerBridge.
        W_dec: decoder rows, in the residual stream.
        n: tokens per feature.

    Returns:
        [feature, n] token ids, the largest increase first; -1 for a row of zeros. [feature, 0] if the width of the rows
        is not that of the residual stream, or if the model has no final norm or no unembedding.
    """
    rows = W_dec.detach()
    ln_final, unembed = (getattr(model, name, None) for name in ("ln_final", "unembed"))
    if ln_final is None or unembed is None or rows.shape[1:] != (int(model.cfg.d_model),):
        return np.zeros((len(rows), 0), dtype=np.int32)

    def to_logits(residual: Float[Tensor, "1 row d_model"]) -> Float[Tensor, "row token"]:
        logits: Tensor = unembed(ln_final(residual))[0].float()
        return logits

    weight = next(unembed.parameters())
    logits_of_zero = to_logits(weight.new_zeros(1, 1, rows.shape[1]))[0]
    promoted = []
    for rows_of_chunk in torch.split(rows, max(1, LOGITS_AT_ONCE // len(logits_of_zero))):
        chunk = rows_of_chunk.to(weight)
        size = chunk.float().square().mean(-1, keepdim=True).sqrt()
        normalized = torch.where(size > 0, chunk.float() / size, 0.0).to(chunk)
        increase = to_logits(normalized[None]).sub_(logits_of_zero)
        top = increase.topk(min(n, len(logits_of_zero)), dim=1).indices
        promoted.append(torch.where(size > 0, top, NO_TOKEN).int().cpu().numpy())
    return np.concatenate(promoted)
