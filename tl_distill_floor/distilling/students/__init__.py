"""Build narrower students of a teacher's family, initialise their weights, and save them.

- `build`: `build_student`, a narrower model of the teacher's family.
- `student_config`: Hugging Face configurations of students.
- `student_heads`: numbers of heads of students.
- `student_depth`: settings of the layers of students with fewer layers.
- `family_checks`: whether the layers of a student follow its width and are those of its teacher.
- `family_models`: plain models of a configuration.
- `axis_trace`: how the axes of a model's weights are connected.
- `axis_maps`: which of the teacher's positions a student's weights keep.
- `narrowing`: slices and projections of the teacher's weights.
- `inherited_weights`: initial weights from the teacher.
- `save`: students as Hugging Face checkpoints.
- `teacher_files`: the teacher's tokenizer and generation settings.
- `plain_student`: whether a student can be saved and loaded.
- `layers`: corresponding layers of teacher and student.
- `model_size`: parameters and memory of a model.
- `export`: `export_student`, an untrained student as Hugging Face files.
- `widths`: widths at which students can be built.
"""
