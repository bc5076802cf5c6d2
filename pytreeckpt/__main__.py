"""`python -m pytreeckpt` is the command `pytreeckpt`."""

import sys

from pytreeckpt.cli import main

sys.exit(main())
