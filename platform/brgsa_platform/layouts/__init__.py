"""Archives as they lie on disk: each layout gives one list of volumes."""

from brgsa_platform.layouts.archive import LAYOUTS, Reading, read_archive
from brgsa_platform.layouts.ct_rate import METADATA_COLUMNS
from brgsa_platform.layouts.identity import identity_key, pseudonym
from brgsa_platform.layouts.ids import file_name, loose_id
from brgsa_platform.layouts.item import SPLITS, Item
from brgsa_platform.layouts.tables.account import TableAccount
from brgsa_platform.layouts.tables.files import read_table
from brgsa_platform.layouts.tables.label_columns import LABELS

__all__ = [
    "LABELS",
    "LAYOUTS",
    "METADATA_COLUMNS",
    "SPLITS",
    "Item",
    "Reading",
    "TableAccount",
    "file_name",
    "identity_key",
    "loose_id",
    "pseudonym",
    "read_archive",
    "read_table",
]
