"""Collect the SAE codes of labelled examples as sparse matrices, with the dense activations that are probed."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64
from scipy.sparse import csr_array, vstack
from torch import Tensor

from tl_distill_floor.predicting.bottleneck_task import HiddenStates
from tl_distill_floor.probing.activations import ActivationViews, pooled_batches
from tl_distill_floor.probing.forecasts import teacher_views
from tl_distill_floor.probing.run_inputs import RunInputs


class TeacherExamples(NamedTuple):
    """The teacher's codes and dense activations of labelled examples, for each task."""

    codes: list[csr_array]
    """[task] codes [example, feature], each multiplied by the norm of the feature's decoder row."""
    dense: dict[str, list[Float32[np.ndarray, "_ _"]]]
    """[view][task] arrays [example, dimension]; for the views see `forecast_views`."""


def collect_codes(inputs: RunInputs, hidden: Mapping[int, HiddenStates]) -> TeacherExamples:
    """Collect the teacher's codes, its activation, and the forecasts for each width.

    The codes of a text are their mean over tokens. A code is multiplied by the norm of the feature's decoder row, so
    that it does not depend on how the SAE divides a feature's size between code and decoder.

    Args:
        inputs: the teacher, the SAE, the examples and the widths.
        hidden: for each width, the function from codes to the bottleneck student's hidden state.
    """
    tasks, stats = inputs.examples.tasks, inputs.floor.stats
    views = _with_codes(teacher_views(inputs, hidden), stats.d_model)
    dense: dict[str, list[np.ndarray]] = {}
    codes: list[list[csr_array]] = [[] for _ in tasks]
    rows: list[list[np.ndarray]] = [[] for _ in tasks]
    for batch in pooled_batches(
        inputs.teacher.model, inputs.hook_name, inputs.examples, views, batch_size=inputs.texts_per_pass
    ):
        for name, view in batch.views.items():
            values = view.float().cpu().numpy()
            if name == "codes":
                codes[batch.task].append(csr_array(values))
                rows[batch.task].append(batch.rows)
                continue
            if name not in dense:
                dense[name] = [np.zeros((len(task), values.shape[1]), dtype=np.float32) for task in tasks]
            dense[name][batch.task][batch.rows] = values
    in_order = [
        scaled_rows(vstack(parts, format="csr"), np.concatenate(part_rows), stats.decoder_norm)
        for parts, part_rows in zip(codes, rows, strict=True)
    ]
    return TeacherExamples(in_order, dense)


def scaled_rows(codes: csr_array, rows: np.ndarray, norm: Float64[np.ndarray, " feature"]) -> csr_array:
    """Return codes with each row at its place, and each column multiplied by a norm.

    Args:
        codes: [row, feature].
        rows: place of each row.
        norm: factor of each feature.

    Example:
        >>> scaled_rows(csr_array([[1.0, 0.0], [0.0, 2.0]]), np.array([1, 0]), np.array([3.0, 5.0])).toarray()
        array([[ 0., 10.],
               [ 3.,  0.]])
    """
    ordered = codes[np.argsort(rows)]
    return csr_array((ordered.data * norm[ordered.indices], ordered.indices, ordered.indptr), shape=ordered.shape)


def _with_codes(views: ActivationViews, d_model: int) -> ActivationViews:
    """Return views that hold the SAE's codes too, as "codes"; `views` appends them to each token's activation."""

    def add_codes(pooled: Tensor) -> dict[str, Tensor]:
        return {"codes": pooled[:, d_model:], **views.after_pooling(pooled)}

    return ActivationViews(views.per_token, add_codes)
