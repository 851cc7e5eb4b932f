"""Archives as they lie on disk, to one list of volumes."""

from brgsa_platform.layouts.archive import LAYOUTS, read_layout
from brgsa_platform.layouts.ct_rate import METADATA
from brgsa_platform.layouts.identity import identity_key, pseudonym
from brgsa_platform.layouts.item import SPLITS, Item
from brgsa_platform.layouts.tables import LABELS

__all__ = ["LABELS", "LAYOUTS", "METADATA", "SPLITS", "Item", "identity_key", "pseudonym", "read_layout"]
