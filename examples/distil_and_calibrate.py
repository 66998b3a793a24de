"""Distil three students, fit their losses to the prediction, and choose a width."""

import tempfile

from tl_distill_floor import (
    DistillConfig,
    StudentSpec,
    calibrate,
    distill_students,
    load_teacher,
    plan,
    predict_floor,
)

WIDTHS = [16, 64, 128]
# This trains for seconds. To estimate the floor of a student, train for minutes: n_tokens=2_000_000 or more.
QUICK = DistillConfig(n_tokens=40_960, n_heldout_tokens=4_096, n_evaluations=10, lr=1e-2, batch_size=8)

teacher = load_teacher("tiny-prose")
floor = predict_floor(teacher, "tiny-prose-sae", widths=WIDTHS, n_tokens=20_000, steps=100)
with tempfile.TemporaryDirectory() as run:
    students = distill_students(teacher, [StudentSpec(width) for width in WIDTHS], out=run, config=QUICK)
    for student, loss in zip(students, floor.feature_floor, strict=True):
        print(f"{student.name}: {student.loss:.3f} nats per token ({student.status}), feature floor {loss:.3f}")

    # The last losses are used, because a learning curve of a few seconds does not determine a floor.
    losses = {student.width: student.loss for student in students}
    calibration = calibrate(floor, losses)
    fit = f"C = {calibration.slope:.2f}, B = {calibration.baseline:.2f}, error {calibration.loo_error:.0%}"
    print(f"{calibration.predictor} follows them best: {fit}")

chosen = plan(floor, teacher, max_width=100)
print(f"train width {chosen.width}: {chosen.n_parameters:,} parameters, {chosen.loss:.3f} nats per token expected")
