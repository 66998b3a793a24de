"""The command line, `tl-floor`: the only code that prints and draws progress bars.

- `app`: the application and its commands.
- `options`: options that several commands share.
- `measuring`, `distilling`, `student_commands`, `probing`, `reporting`, `lost`, `toy`: the work of the commands.
- `errors`: errors as one sentence and an exit status.
- `memory`: settings of the memory allocator.
"""
