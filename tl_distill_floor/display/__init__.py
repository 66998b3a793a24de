"""Display records as terminal tables, figures, HTML reports and JSON.

- `views`: the table and the figure of each record.
- `floor_tables`: predictions as tables.
- `head_views`: head floors as tables, figures and JSON.
- `measurement_tables`: feature statistics, simulations and tail losses as tables.
- `comparison`: several predictions as one table.
- `lost_feature_views`: the features that a student loses, as tables and JSON.
- `student_tables`: students and calibrations as tables.
- `plan_views`: plans and pilots as tables and figures.
- `diagnosis_views`: diagnoses as tables, figures and JSON.
- `probe_tables`: probes as tables.
- `sparse_probe_tables`: k-sparse probes as tables and sentences.
- `toy_tables`: toy models as tables.
- `tables`: parts that all tables share.
- `figures`: figures of predictions, and `save_figure`.
- `feature_figures`: figures of features and their costs.
- `student_figures`: figures of students and calibrations.
- `probe_figures`: figures of probes.
- `toy_figures`: figures of toy models.
- `figure_style`: colours and layout of all figures.
- `report`: `write_report` and `write_comparison`.
- `report_sections`: the sections and figures of a report.
- `report_page`: sections as one HTML page.
- `run_parts`: the parts of a run directory.
- `html`: tables as HTML.
- `as_json`: predictions as JSON.
- `units`: names of the units of losses.
- `escaping`: control characters made visible.
"""
