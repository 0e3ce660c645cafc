"""Plan × Checkpoint → a file in the uploaded format that its own tools load, with plan and certificate inside."""

from cipm.export.pruned import export_pruned, forms
from cipm.export.record import Form, make_record, read_plan
from cipm.export.write import export, restore

__all__ = ["Form", "export", "export_pruned", "forms", "make_record", "read_plan", "restore"]
