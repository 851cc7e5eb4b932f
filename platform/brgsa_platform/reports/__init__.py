"""An evaluation, or several, as one HTML page that a person opens."""
