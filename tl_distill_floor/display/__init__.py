"""Show records: terminal tables, figures, the HTML report, JSON.

- `views`: the table and the figure of each record.
- `floor_tables`: predictions as tables.
- `comparison`: several predictions side by side.
- `escaping`: signs for characters that would move the cursor.
- `run_parts`: what a run directory holds.
- `toy_tables`: toy models as tables.
- `lost_features`: the features that a student loses.
- `student_tables`: students, calibrations and plans as tables.
- `probe_tables`: probes as tables.
- `figures`: figures of predictions and toy models.
- `student_figures`: figures of students and probes.
- `html`: tables as HTML.
- `report`: one run, or several, as one HTML page.
- `as_json`: predictions as JSON values.
"""
