"""One thread for all that is tested, in this process and in those it starts.

Small tensors gain nothing from threads, and where two workers share two cores, threads that wait for each other take
more of them than the work itself.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, which reads it then
