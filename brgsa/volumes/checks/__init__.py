"""Is this a chest CT? Of its geometry, of its values, of its picture."""
