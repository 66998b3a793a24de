"""Predict the loss floor of every student width.

- `predict`: `predict_floor`, from a teacher and an SAE; `predict_floors`, for several SAEs in one pass.
- `floors`: `floor_from_stats`, from measured statistics.
- `simulation`, `bottleneck`: bottleneck students, trained on the codes of an SAE.
- `lost_features`: `lost_features` and `one_feature`, what a student loses.
- `toy_experiments`: grids of toy models, among them the paper's.
- `toy`: toy models of superposition, trained on independent synthetic features.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=["toy"])
