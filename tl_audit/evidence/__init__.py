"""Evidence: what the models were observed to do, per sample. Collected in one pass, kept on disk by content, read memory-mapped.

base     Evidence, the access that checks use
passes   one pass per (model, domain)
scan     what reading a domain reveals, whatever the model
store    where it lies between runs: whole or absent, never half
stored   StoredEvidence, collect: the access over a store
cards    facts of models and domains for the record
"""

from tl_audit.evidence.base import Evidence, missing_input
from tl_audit.evidence.store import Store
from tl_audit.evidence.stored import StoredEvidence, collect

__all__ = ["Evidence", "Store", "StoredEvidence", "collect", "missing_input"]
