"""`python -m tl_distill_floor`, which launchers of several processes want: the same as `tl-floor`."""

from tl_distill_floor.cli.app import main

if __name__ == "__main__":
    main()
