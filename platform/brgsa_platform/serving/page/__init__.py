"""`brgsa serve`: a page on which one CT at a time is looked at and asked about."""
