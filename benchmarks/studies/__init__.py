"""Studies of the paper's claims on real motion: ``plan`` (the runs), ``cells`` (their making), ``page`` (tables)."""
