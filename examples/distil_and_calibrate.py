"""Distil three students, hold the prediction against them, and choose a width."""

import tempfile

from tl_distill_floor import Training, calibrate, load_teacher, plan, predict_floor
from tl_distill_floor.students.distill import distill_students
from tl_distill_floor.students.training import Spec

WIDTHS = [16, 64, 128]
# Some minutes of training, not some seconds, are what a floor takes: tokens=2_000_000 and more.
QUICK = Training(tokens=40_960, heldout_tokens=4_096, evaluations=10, lr=1e-2, batch_size=8)

teacher = load_teacher("tiny-prose")
floor = predict_floor(teacher, "tiny-prose-sae", widths=WIDTHS, n_tokens=20_000, steps=100)
with tempfile.TemporaryDirectory() as run:
    students = distill_students(teacher, [Spec(width) for width in WIDTHS], out=run, training=QUICK)
    for student, expected in zip(students, floor.expected, strict=True):
        print(
            f"{student.name}: {student.loss:.3f} nats per token ({student.status}), expected {expected:.3f} at the end"
        )

    losses = {student.width: student.loss for student in students}  # no curve of a few seconds has an end
    calibration = calibrate(floor, losses)
    fit = f"C = {calibration.slope:.2f}, B = {calibration.baseline:.2f}, error {calibration.loo_error:.0%}"
    print(f"{calibration.predictor} follows them best: {fit}")

chosen = plan(floor, teacher.model, max_width=100)
print(f"train width {chosen.width}: {chosen.n_parameters:,} parameters, {chosen.loss:.3f} nats per token expected")
