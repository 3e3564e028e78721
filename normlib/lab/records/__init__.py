"""Records: what one trial measured, one JSON line each; the store they grow in, and the bundles they travel in."""

from normlib.lab.records.record import SCHEMA, Record, pack_table, record_key
from normlib.lab.records.store import RecordWarning, Store, committed_results

__all__ = ["SCHEMA", "Record", "RecordWarning", "Store", "committed_results", "pack_table", "record_key"]
