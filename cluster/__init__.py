"""Where it runs: Ray jobs over the encoders and index rooms, and the command line."""

import index  # noqa: F401 - before pyarrow, whose memory pool it chooses
