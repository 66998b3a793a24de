"""Predict the loss floor of every student width.

- `predict`: `predict_floor`, from a teacher and an SAE; `predict_floors`, from several SAEs in one pass.
- `config`: `PredictConfig`, the options of a prediction from measured features.
- `measured_floors`: from the measured statistics of one SAE and its teacher.
- `floors`: `floor_from_stats`, from measured statistics alone.
- `intervals`: 95 % intervals of a prediction.
- `checks`: checks of the options, and the warnings of a prediction.
- `simulation`: `train_bottlenecks`, bottleneck students that are trained on an SAE's codes, and their losses.
- `bottleneck_task`: the codes that bottleneck students are trained on and evaluated on.
- `bottleneck`: the model and the training of bottleneck students.
- `sparse_batches`: the batches of their training.
- `lost_features`: `lost_features` and `one_feature`, the features that a student loses.
- `promoted_tokens`: `add_promoted_tokens`, the tokens that shown features promote.
- `head_floor`: `head_floor`, an estimate of the least loss of any student of a width; it needs no SAE.
- `without_sae`: `predict_without_sae`, a prediction from the head floor alone.
- `head_tokens`: the teacher's last hidden states and unembedding.
- `low_rank_head`: logits of low rank, and their training.
- `head_contexts`: the best low-rank logits of each context.
- `toy`: `toy.train`, toy models of superposition on synthetic features.
- `toy_experiments`: grids of toy models, among them the paper's.
- `processor`: the dtype and the threads of trainings.
- `progress`: progress callbacks and bars.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=["toy"])
