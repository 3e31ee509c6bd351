"""``python -m exafield`` is ``exafield``: the form that works under every launcher."""

import sys

from exafield.cli import main

if __name__ == "__main__":
    sys.exit(main())
