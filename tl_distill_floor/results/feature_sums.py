"""What one batch of text gives of one SAE, and the same as named arrays that can be sent."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from tl_distill_floor.results.codes import Codes
from tl_distill_floor.results.contexts import FeatureContexts

SCALARS = ("n_tokens", "n_masked", "sampled_tokens", "sampled_sum_sq", "sampled_error_sq")
"""The sums that are one number, not one for each feature or dimension."""


class Part(NamedTuple):
    """Sums over a batch, under the names of `FeatureStats`; its codes and contexts, where they are kept."""

    sums: dict[str, Any]
    codes: Codes | None
    contexts: FeatureContexts | None


def packed(parts: list[Part]) -> dict[str, np.ndarray]:
    """Named arrays: nothing is rounded."""
    found: dict[str, np.ndarray] = {"parts": np.array([len(parts)])}
    for number, part in enumerate(parts):
        for name, value in part.sums.items():
            found[f"{number} sums {name}"] = np.atleast_1d(np.asarray(value))
        for kind, record in (("codes", part.codes), ("contexts", part.contexts)):
            if record is not None:
                fields = {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}
                found |= {f"{number} {kind} {name}": np.atleast_1d(np.asarray(v)) for name, v in fields.items()}
    return found


def unpacked(arrays: dict[str, np.ndarray]) -> list[Part]:
    """The inverse of `packed`."""

    def of(number: int, kind: str) -> dict[str, Any]:
        start = f"{number} {kind} "
        return {name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)}

    def sums(number: int) -> dict[str, Any]:
        whole = of(number, "sums")
        return {name: array[0].item() if name in SCALARS else array for name, array in whole.items()}

    def codes(number: int) -> Codes | None:
        found = of(number, "codes")
        return Codes(**(found | {"n_features": int(found["n_features"][0])})) if found else None

    def contexts(number: int) -> FeatureContexts | None:
        found = of(number, "contexts")
        return FeatureContexts(**found) if found else None

    return [Part(sums(i), codes(i), contexts(i)) for i in range(int(arrays["parts"][0]))]
