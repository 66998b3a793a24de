"""Last hidden states of a teacher on training and held-out tokens, for the head floor."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor, nn

from tl_distill_floor.annotations import ProgressCallback
from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.activation_batch import select_tokens
from tl_distill_floor.measuring.hooks import check_finite
from tl_distill_floor.measuring.kl import expected_log_prob
from tl_distill_floor.measuring.logit_map import LogitMap, tokens_per_chunk
from tl_distill_floor.measuring.sampling import spread_at_random
from tl_distill_floor.measuring.teacher_backbone import teacher_backbone
from tl_distill_floor.measuring.token_stream import TokenStream, model_input
from tl_distill_floor.sources.teacher_checks import check_head, forward_errors

MAX_HELDOUT_SHARE = 1 / 8
"""Largest share of the sequences that is held out."""
TOKENS_PER_KEPT = 8
"""Tokens of held-out sequences of which one is kept. Losses differ more between sequences than within them, so that the
same number of tokens from more sequences gives a smaller standard error."""
UNIT = 256.0
"""Length of the vectors that show the weights of an unembedding: a power of 2, which rounds nothing."""


@dataclass(frozen=True)
class TeacherHead:
    """The last step of a teacher: from its last hidden states to its logits."""

    weight: Float[Tensor, "vocabulary d_model"]
    """Weights of the unembedding, in fp32."""
    bias: Float[Tensor, " vocabulary"]
    """Bias of the unembedding; 0 if it has none."""
    logit_map: LogitMap
    """Scale and cap of the logits."""

    def log_probs(self, hidden: Float[Tensor, "token d_model"]) -> Float[Tensor, "token vocabulary"]:
        """Return the teacher's log-probabilities of the next token, in nats."""
        return self._logits(hidden).log_softmax(-1)

    def probabilities(
        self, hidden: Float[Tensor, "token d_model"], dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "token vocabulary"]:
        """Return the teacher's probabilities of the next token, with the logits of some tokens at a time in memory.

        Args:
            hidden: last hidden states.
            dtype: dtype that the probabilities are rounded to.
        """
        result = torch.empty(len(hidden), len(self.weight), dtype=dtype, device=hidden.device)
        size = tokens_per_chunk(len(self.weight), hidden.device)
        for first in range(0, len(hidden), size):
            rows = slice(first, first + size)
            result[rows] = self._logits(hidden[rows]).softmax(-1)
        return result

    def known_share(self, hidden: Float[Tensor, "token d_model"]) -> float:
        """Return the share of the next token's entropy that the context removes, by the teacher's own probabilities.

        It is 1 − E[H(p)] / H(E[p]): the uncertainty coefficient (Theil 1970) of the next token given the context. A
        teacher that knows only how frequent the tokens are has 0.

        Args:
            hidden: last hidden states.
        """
        mean = torch.zeros(len(self.weight), dtype=torch.float64, device=hidden.device)
        entropy = 0.0
        for chunk in torch.split(hidden, tokens_per_chunk(len(self.weight), hidden.device)):
            log_p = self.log_probs(chunk)
            p = log_p.exp()
            mean += p.double().sum(0) / len(hidden)
            entropy -= float(expected_log_prob(p, log_p).double().sum()) / len(hidden)
        of_mean = -float(torch.special.xlogy(mean, mean).sum())
        return max(0.0, 1.0 - entropy / of_mean) if of_mean > 0 else 0.0

    def _logits(self, hidden: Float[Tensor, "token d_model"]) -> Float[Tensor, "token vocabulary"]:
        return self.logit_map(hidden.float() @ self.weight.T + self.bias)


@dataclass(frozen=True)
class HeadTokens:
    """Last hidden states of the counted tokens of a text, in the teacher's dtype."""

    head: TeacherHead
    train: Float[Tensor, "train d_model"]
    heldout: Float[Tensor, "heldout d_model"]
    heldout_sequence: Int[Tensor, " heldout"]
    """Number of the sequence that each held-out token belongs to."""


def read_head_tokens(
    stream: TokenStream,
    n_tokens: int,
    n_train_tokens: int,
    n_heldout_tokens: int,
    progress: ProgressCallback | None = None,
) -> HeadTokens:
    """Run a teacher over sequences of a text and keep its last hidden states.

    Training and held-out sequences are chosen at random, spread over the text; so are the held-out tokens over their
    sequences.

    Args:
        stream: the teacher and the text.
        n_tokens: tokens of the text that the sequences are chosen from.
        n_train_tokens: tokens of the training sequences at most.
        n_heldout_tokens: held-out tokens to keep at most. Sequences of 8 times as many tokens are held out, at most an
            eighth of all.
        progress: called after every batch with the tokens that the teacher has run on and the total.

    Raises:
        InputError: the teacher has no head, a hidden state is not finite, or the text has fewer than two sequences.
    """
    model = stream.teacher.model
    check_head(model)
    if not isinstance(getattr(model, "unembed", None), nn.Module):
        raise InputError("the model has no unembedding, so it gives no logits; give a language model with a head")
    batches = [ids for _, ids in stream.batches(0, n_tokens)]
    n_sequences = sum(len(ids) for ids in batches)
    if n_sequences < 2:
        raise InputError(
            f"{stream.text.name} gave {n_sequences} sequence(s) of {stream.context_size} tokens within {n_tokens:,}"
            " tokens, and the head floor needs at least 2, one of them held out; give more text with --text, more"
            " --tokens, or a smaller --context-size"
        )
    wanted = -(-n_heldout_tokens * TOKENS_PER_KEPT // stream.context_size)
    n_heldout = max(1, min(wanted, int(n_sequences * MAX_HELDOUT_SHARE)))
    is_heldout = torch.zeros(n_sequences, dtype=torch.bool)
    is_heldout[spread_at_random(n_heldout, n_sequences)] = True
    (others,) = torch.where(~is_heldout)
    is_read = is_heldout.clone()
    is_read[others[spread_at_random(-(-n_train_tokens // stream.context_size), len(others))]] = True
    total, done = int(is_read.sum()) * stream.context_size, 0
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    with (
        torch.no_grad(),
        forward_errors(model),
        teacher_backbone(model, None, model_input(model, batches[0])) as backbone,
    ):
        head = _teacher_head(backbone.unembed, backbone.logit_map, int(model.cfg.d_model))
        for numbers, ids in _selected_rows(batches, is_read, stream.batch_size):
            location = stream.counted(ids).flatten().nonzero().squeeze(1)
            # The model's layers may be on several devices.
            hidden = select_tokens(backbone(model_input(model, ids)).last_hidden, location).to(head.weight.device)
            check_finite(hidden, "the input of the unembedding")
            of_token = numbers[location // ids.shape[1]]
            parts.append((hidden, is_heldout[of_token], of_token))
            done += ids.numel()
            if progress:
                progress(done, total)
    hidden, of_heldout, numbers = (torch.cat(columns) for columns in zip(*parts, strict=True))
    if not of_heldout.any() or of_heldout.all():
        raise InputError(f"{stream.text.name} has no tokens that count apart from special ones; give more text")
    train, heldout = (torch.where(selected)[0] for selected in (~of_heldout, of_heldout))
    kept = heldout[spread_at_random(n_heldout_tokens, len(heldout))]
    return HeadTokens(head, hidden[train.to(hidden.device)], hidden[kept.to(hidden.device)], numbers[kept])


def some_tokens(hidden: Float[Tensor, "token d_model"], n: int) -> Float[Tensor, "chosen d_model"]:
    """Return the last hidden states of `n` tokens at most, chosen at random from the whole text.

    Args:
        hidden: last hidden states, in the order of the text.
        n: number of tokens.
    """
    return hidden[spread_at_random(n, len(hidden)).to(hidden.device)]


def _selected_rows(
    batches: list[Int[Tensor, "_ position"]], is_selected: Bool[Tensor, " sequence"], batch_size: int
) -> Iterator[tuple[Int64[Tensor, " row"], Int[Tensor, "row position"]]]:
    """Yield the numbers and the token ids of the selected sequences in batches."""
    numbers = torch.where(is_selected)[0]
    rows = torch.cat(batches)[numbers]
    yield from zip(torch.split(numbers, batch_size), torch.split(rows, batch_size), strict=True)


def _teacher_head(unembed: nn.Module, logit_map: LogitMap, d_model: int) -> TeacherHead:
    """Return the weights of an unembedding, which is linear, as it transforms large unit vectors and 0.

    The unit vectors are large because the bias is added before the result is rounded to the teacher's dtype.
    """
    parameter = next(unembed.parameters())
    unit = UNIT * torch.eye(d_model, dtype=parameter.dtype, device=parameter.device)
    bias = unembed(torch.zeros_like(unit[:1])).float()[0]
    weight = (unembed(unit).float() - bias.where(bias.isfinite(), 0.0)).div_(UNIT).T.contiguous()
    return TeacherHead(weight.nan_to_num(0.0, 0.0, 0.0), bias, logit_map)
