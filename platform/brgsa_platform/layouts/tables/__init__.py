"""The tables beside an archive: read in any usual form, joined with its volumes by kind of id, and accounted for."""
