"""The paper's claims on real motion, cell by cell: ``plan`` (what), ``cells`` (how), ``page`` (the tables)."""
