"""`python -m spatialdiff.cli`, the same as `spatialdiff`."""

from spatialdiff.cli import main

raise SystemExit(main())
