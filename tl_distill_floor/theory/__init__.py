"""Compute capacities, allocations, floors and fits from arrays.

- `capacity`: the capacity function g(α) and the critical width d*.
- `allocation`: `allocate`, the features that a student of one width keeps.
- `floors`: the floor at every width, by Theorem 1, by water-filling, and by two rules to compare on toy models.
- `water_filling`: the best allocation to features that fire independently.
- `loss_capacity`: the measured loss-capacity curve that water-filling uses.
- `power_law`: the power law of the sorted costs, and its cliff.
- `learning_curve`: extrapolation of a learning curve to the loss at saturation.
- `rate_schedule`: learning rates in the fit of a learning curve.
- `remaining_loss`: how much of a loss more tokens would remove.
- `regression`: linear fits with prediction intervals and leave-one-width-out errors.
- `random_effects`: linear fits over several teachers, and predictions for one that was not seen.
- `bootstrap`: the block bootstrap.

No torch is needed here.
"""
