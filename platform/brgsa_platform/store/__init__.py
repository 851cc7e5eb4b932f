"""From an archive to shards, and what reads them."""
