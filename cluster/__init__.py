"""Where it runs: Ray jobs over the encoders and index rooms, and the command line."""
