"""Studies of the paper's claims on real motion: ``plan`` (the runs), ``trials`` (their making), ``page`` (tables)."""
