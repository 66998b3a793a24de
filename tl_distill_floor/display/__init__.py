"""Display records as terminal tables, figures, HTML reports and JSON.

- `views`: the table and the figure of each record.
- `floor_tables`: predictions as tables.
- `head_views`: head floors, and predictions without features, as tables and figures.
- `measurement_views`: feature statistics, simulations and tail losses as tables and figures.
- `comparison`: several predictions as one table.
- `lost_feature_views`: the features that a student loses, as tables, figures and JSON.
- `student_views`: students and calibrations as tables and figures.
- `plan_views`: plans and pilots as tables and figures.
- `diagnosis_views`: diagnoses as tables, figures and JSON.
- `probe_views`: probes as tables and figures.
- `sparse_probe_views`: k-sparse probes as tables, figures and sentences.
- `toy_views`: toy models as tables and figures.
- `tables`: parts that all tables share.
- `figures`: figures of predictions, and `save_figure`.
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
