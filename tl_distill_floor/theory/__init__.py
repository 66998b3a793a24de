"""Compute capacities, allocations and fits from arrays; NumPy and SciPy only.

- `capacity`: the capacity function g(α) and the critical width d* of Theorem 1.
- `allocation`: `allocate`, which features a student of one width holds.
- `floors`: the floor of every width by Theorem 1 and by water-filling.
- `water_filling`: the best allocation for features that fire independently.
- `loss_capacity`: the measured loss-capacity curve that water-filling uses.
- `predictors`: predictors compared on toy models.
- `power_law`: the power law of the sorted costs, and its cliff.
- `learning_curve`: where a learning curve ends.
- `regression`: linear fits with prediction intervals and leave-one-out errors.
- `bootstrap`: the block bootstrap.
"""
