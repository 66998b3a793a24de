"""The types and array shapes of the package are checked while the tests run, and the checks can be switched off."""

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from tests.helpers.type_checks import without_type_checks
from tl_distill_floor import capacity
from tl_distill_floor.results.block_sums import BlockSums
from tl_distill_floor.theory.allocation import remaining_costs


def test_types_shapes_and_fields_are_checked() -> None:
    with pytest.raises(TypeCheckError):
        capacity("0.9")
    with pytest.raises(TypeCheckError):
        remaining_costs(np.ones((2, 2)))
    with pytest.raises(TypeCheckError):
        BlockSums(*[np.ones(2)] * 4)


def test_checks_can_be_switched_off() -> None:
    with without_type_checks(), pytest.raises(TypeError, match="'<' not supported"):
        capacity("0.9")
