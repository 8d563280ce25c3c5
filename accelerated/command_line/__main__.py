"""`python -m prograde.accelerated.command_line`."""

from .app import main

if __name__ == "__main__":
    main()
