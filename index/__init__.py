"""Vectors to answers: the embedding store, indexes, search, labels and few-label classifiers."""

import os

# Read when pyarrow is first imported. Its own pool keeps what it once had: to restore pictures it
# held 17 MB, of a budget of 40, for 1 MB of ids. The C library gives back what is free
# (`index.budget.give_back`).
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
