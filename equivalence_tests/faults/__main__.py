"""`python -m prograde.equivalence_tests.faults`; see `planting`."""

import sys

from ..planting import main

sys.exit(main())
