"""`python -m tnt COMMAND ...`: see tnt/cli."""

import sys

from tnt.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
