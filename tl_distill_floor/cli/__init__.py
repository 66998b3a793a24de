"""The command line `tl-floor`, the only code that prints and shows progress bars.

One module per command: `measure`, `compare`, `saes`, `train_sae`, `toy`, `lost`, `distill`, `calibrate`, `plan`,
`diagnose`, `probe`, `report`. They share:

- `app`: the application, which registers the commands.
- `options`: arguments and options of several commands.
- `unused_options`: refuse options that have no effect.
- `layers`: which layers `measure` measures.
- `match_options`: what `distill` matches.
- `pilots_option`: the pilots that `plan` trains.
- `run_directory`: a run's directory, its lock, and an interrupted measurement.
- `promoted_option`: the tokens that the shown features promote, computed on request.
- `output`: tables and JSON on stdout.
- `progress`: progress bars and log lines on stderr.
- `errors`: an error as one sentence and an exit status.
- `streams`: standard output and error that do not fail.
- `libraries`: silence other libraries.
- `processes`: runs of several processes.
- `memory`: settings of the memory allocator and of waiting threads.
"""
