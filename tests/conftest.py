"""Settings that must stand before torch is imported."""

import os

# Tests share their cores; threads that spin at barriers while another process holds their core cost tenfold.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
