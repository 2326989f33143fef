"""`python -m coordformer`."""

import sys

from coordformer_command import main

sys.exit(main())
