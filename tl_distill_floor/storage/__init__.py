"""Write and read the package's files: atomic writes, directory locks, versioned formats, training checkpoints.

- `atomic`: write a file, several files or a directory completely or not at all.
- `locks`: keep other commands out of a directory.
- `versioned`: safetensors and JSON files with a format name and a version.
- `checkpoints`: interrupted trainings.
- `io_errors`: report a failed write in one sentence.
"""
