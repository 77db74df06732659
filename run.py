"""`python run.py` is `twinsight`: see `python run.py --help`."""

import sys

from twinsight.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
