"""Archives as they lie on disk: each layout gives one list of volumes."""

from brgsa_platform.layouts.archive import LAYOUTS, read_layout
from brgsa_platform.layouts.ct_rate import METADATA_COLUMNS
from brgsa_platform.layouts.identity import identity_key, pseudonym
from brgsa_platform.layouts.item import SPLITS, Item
from brgsa_platform.layouts.tables import LABELS

__all__ = ["LABELS", "LAYOUTS", "METADATA_COLUMNS", "SPLITS", "Item", "identity_key", "pseudonym", "read_layout"]
