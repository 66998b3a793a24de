"""`tl-floor calibrate`: fit the losses of trained students to the prediction."""

import dataclasses
from shlex import quote

from tl_distill_floor.cli.errors import report_errors
from tl_distill_floor.cli.options import DebugOption, JsonOption, RunArgument, StudentsOption
from tl_distill_floor.cli.output import print_json, print_result


@report_errors
def calibrate(
    run: RunArgument,
    students: StudentsOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Compare the prediction with distilled students, and fit the students' loss as a linear function of it."""
    from tl_distill_floor.cli.run_directory import load_prediction
    from tl_distill_floor.display.student_views import calibration_table
    from tl_distill_floor.distilling.planning.calibrate import calibrate as fit_students
    from tl_distill_floor.results.student import load_students
    from tl_distill_floor.storage.io_errors import COPY_ADVICE
    from tl_distill_floor.storage.locks import lock_directory

    with lock_directory(run, COPY_ADVICE):
        calibration = fit_students(load_prediction(run), load_students(students or run, required=True))
        calibration.save(run)
    if as_json:
        print_json(dataclasses.asdict(calibration))
    else:
        note = f"Saved in {run}. Next: tl-floor plan {quote(str(run))} --max-loss 0.2"
        print_result(calibration_table(calibration), note)
