"""Studies of the paper's claims on real motion: ``plan`` lists the runs, ``trials`` does them, ``page`` shows them."""
