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
from tl_distill_floor.results.expected_loss import EXPECTED_LOSS_FILE, WITH_KNOWN_SHARE

FORM = "a · x^b"
"""The form for head floors of older versions, which have no known share."""
PREDICTORS = {"head": "head, encoded", "head and simulated": "encoded + simulated, middle layer"}
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
    fits = {}
    for name, predictor in PREDICTORS.items():
        for suffix, form in (("", FORM), (WITH_KNOWN_SHARE, FORM_OF_EXPECTED)):
            fit = fit_form(form, predictor, students)
            fits[name + suffix] = {
                "coefficients": fit.coefficients,
                "covariance": fit.covariance,
                "between": fit.between,
                "slope": fit.slope,
                "centre": fit.centre,
                "within": fit.within,
                "n_teacher_terms": fit.n_group_terms,
            }
    stored = {
        "what": "log loss = a + b · log x + c · log k, k the known share; teachers differ in a (variance: between) and"
        " in b (variance: slope); losses in nats per token, KL(teacher ‖ student)",
        "fits": fits,
        "n_students": len(students),
        "log_error": float(np.median([student.log_error for student in students])),
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


if __name__ == "__main__":
    typer.run(main)
