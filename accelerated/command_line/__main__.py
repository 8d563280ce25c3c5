"""`python -m prograde.accelerated.command_line`."""

from . import main

if __name__ == "__main__":
    main()
