"""Search spaces as data: one YAML file a space, and the loader that checks them."""
