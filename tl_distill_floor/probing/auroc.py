"""Area under the ROC curve (AUROC) of many scores at once."""

import numpy as np
from jaxtyping import Bool, Float, Float64
from scipy.stats import rankdata


def column_auroc(
    score: Float[np.ndarray, "example column"], positive: Bool[np.ndarray, "example column"]
) -> Float64[np.ndarray, " column"]:
    """Return the AUROC of each column: the probability that a positive example is scored above a negative one.

    It equals `sklearn.metrics.roc_auc_score` of each column, computed from ranks (the Mann-Whitney U statistic), which
    takes about a quarter of the time for thousands of columns. Ties count one half.

    Args:
        score: scores [example, column].
        positive: which examples are positive in each column.

    Returns:
        AUROC [column], between 0 and 1; NaN where all examples or none are positive.

    Example:
        >>> column_auroc(np.array([[0.1], [0.4], [0.8]]), np.array([[False], [True], [True]]))
        array([1.])
    """
    n_positive = positive.sum(0)
    n_pairs = n_positive * (len(positive) - n_positive)
    rank_sum = np.array([rankdata(score[:, i])[positive[:, i]].sum() for i in range(score.shape[1])])
    u = rank_sum - n_positive * (n_positive + 1) / 2
    auroc: np.ndarray = np.divide(u, n_pairs, out=np.full(len(u), np.nan), where=n_pairs > 0)
    return auroc
