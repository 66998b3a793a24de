"""Compare the head floor with students of a teacher that are not trained: projections and slices.

- `projection`: the teacher's last hidden state, projected to its leading principal directions in the metric of the KL.
  It is the start of the head floor's training.
- `sliced`: the teacher itself, projected to the leading singular directions of its embeddings (`build_student` with
  `start="svd"`).

    python benchmarks/head_baselines.py --model tiny-prose --widths 16,32,64,96,128,192
"""

import argparse
import json

import torch

from tl_distill_floor import build_student, load_teacher
from tl_distill_floor.measuring.kl import forward_kl
from tl_distill_floor.measuring.logit_map import LogitMap
from tl_distill_floor.measuring.token_stream import TokenStream, model_input, open_token_stream
from tl_distill_floor.predicting.head_floor import N_HELDOUT_TOKENS, N_TOKENS
from tl_distill_floor.predicting.head_tokens import HeadTokens, read_head_tokens
from tl_distill_floor.predicting.low_rank_head import principal_directions
from tl_distill_floor.sources.teachers import choose_context_size

TOKENS_AT_ONCE = 512


def main() -> None:
    """Print the loss of each student, KL(teacher ‖ student) in nats per token, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-prose")
    parser.add_argument("--widths", default="16,32,64,96,128,192")
    parser.add_argument("--heldout-tokens", type=int, default=N_HELDOUT_TOKENS)
    options = parser.parse_args()
    widths = [int(width) for width in options.widths.split(",")]
    teacher = load_teacher(options.model)
    stream = open_token_stream(teacher, None, choose_context_size(teacher.model, None), 16)
    tokens = read_head_tokens(stream, N_TOKENS, N_TOKENS, options.heldout_tokens)
    result = {
        "model": options.model,
        "unit": "nats per token, KL(teacher ‖ student)",
        "heldout_tokens": len(tokens.heldout),
        "widths": widths,
        "projection": projection_losses(tokens, widths),
        "sliced": [sliced_loss(stream, tokens, width) for width in widths],
    }
    print(json.dumps(result, indent=1, ensure_ascii=False))


@torch.no_grad()
def projection_losses(tokens: HeadTokens, widths: list[int]) -> list[float]:
    """Return the held-out loss of the projection to each number of directions."""
    directions = principal_directions(tokens.head, tokens.train)
    sums = [0.0] * len(widths)
    for hidden in torch.split(tokens.heldout.float(), TOKENS_AT_ONCE):
        teacher = tokens.head.log_probs(hidden)
        coordinates = directions.coordinates(hidden)
        for i, width in enumerate(widths):
            z, decode = coordinates[:, :width], directions.decode[:, :width]
            student = LogitMap(1.0, tokens.head.logit_map.cap)(z @ decode.T + directions.bias)
            sums[i] += float(forward_kl(teacher, student).sum())
    return [total / len(tokens.heldout) for total in sums]


@torch.no_grad()
def sliced_loss(stream: TokenStream, tokens: HeadTokens, width: int) -> float:
    """Return the loss of an untrained student, whose weights are projections of the teacher's.

    It is measured on every token of the held-out sequences; the projection, on those that `tokens` keeps.
    """
    student = build_student(stream.teacher.model, width, start="svd").eval()
    heldout = set(tokens.heldout_sequence.tolist())
    summed, n_tokens, number = 0.0, 0, 0
    for _, ids in stream.batches(0, N_TOKENS):
        chosen = [row for row in range(len(ids)) if number + row in heldout]
        number += len(ids)
        if not chosen:
            continue
        rows = ids[chosen]
        counted = stream.counted(rows)
        inputs = model_input(stream.teacher.model, rows)
        losses = forward_kl(stream.teacher.model(inputs), student(inputs).logits)
        summed, n_tokens = summed + float(losses[counted].sum()), n_tokens + int(counted.sum())
    return summed / n_tokens


if __name__ == "__main__":
    main()
