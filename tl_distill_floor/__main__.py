"""Run the command line with `python -m tl_distill_floor`, as launchers of several processes do."""

from tl_distill_floor.cli.app import main

if __name__ == "__main__":
    main()
