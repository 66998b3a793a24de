"""Fit the expected loss of a trained student to the atlas, and write the package's data file.

python benchmarks/atlas/fit_expected.py
"""

import json
from pathlib import Path

import numpy as np
import typer
from judge import FORM_OF_EXPECTED, fit_form
from students import read_students

import tl_distill_floor
from tl_distill_floor.results.expected_loss import EXPECTED_LOSS_FILE, WITH_KNOWN_SHARE, WITHOUT_KNOWN_SHARE
from tl_distill_floor.theory.random_effects import RandomEffectsFit

FORMS = {WITHOUT_KNOWN_SHARE: "a · x^b", WITH_KNOWN_SHARE: FORM_OF_EXPECTED}
"""The forms that are fitted; head floors of older versions have no known share."""
PREDICTORS = {"encoded": "head, encoded", "encoded and simulated": "encoded + simulated, middle layer"}
"""The predictor of the atlas behind each one of the package."""
HEAD_STEPS = 200
"""Training steps of the atlas's head floors: the default."""
DATA_FILE = Path(tl_distill_floor.__file__).parent / "assets" / EXPECTED_LOSS_FILE


def main(out: Path = DATA_FILE) -> None:
    """Write the fits."""
    directory = Path(__file__).parent
    students, _ = read_students(directory)
    names = sorted({student.teacher for student in students})
    rows = [json.loads((directory / f"{name}.json").read_text(encoding="utf-8")) for name in names]
    fits = {
        name: {part: _stored(fit_form(form, predictor, students)) for part, form in FORMS.items()}
        for name, predictor in PREDICTORS.items()
    }
    stored = {
        "what": "log loss = a + b · log x + c · log k, k the known share; teachers differ in a"
        " (intercept_variance) and b (slope_variance); losses in nats per token, KL(teacher ‖ student)",
        "fits": fits,
        "n_students": len(students),
        "log_error": float(np.median([student.log_error_as_pilot for student in students])),
        "head_steps": HEAD_STEPS,
        "teachers": [
            {"name": name}
            | {key: row["recipe"][key] for key in ("family", "n_layers", "d_model", "vocab_size")}
            | {"known_share": row["predictions"]["known_share"]}
            for name, row in zip(names, rows, strict=True)
        ],
    }
    out.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"Wrote {out.name}: {len(students)} students of {len(names)} teachers")


def _stored(fit: RandomEffectsFit) -> dict[str, object]:
    """Return what the data file holds of a fit."""
    return {
        "coefficients": fit.coefficients,
        "covariance": fit.covariance,
        "intercept_variance": fit.intercept_variance,
        "slope_variance": fit.slope_variance,
        "residual_variance": fit.residual_variance,
        "centre": fit.centre,
        "n_teacher_terms": fit.n_group_terms,
    }


if __name__ == "__main__":
    typer.run(main)
