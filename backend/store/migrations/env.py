"""Run the migrations on the connection that `backend.store.database.upgrade` hands over."""

from typing import Any

from alembic import context
from alembic.autogenerate.api import AutogenContext

from backend.store.models import Base, UtcDateTime


def render(kind: str, item: Any, autogen: AutogenContext) -> str | bool:
    """Write our column type as what it is in the database, so that a migration never imports the models."""
    return "sa.DateTime(timezone=True)" if kind == "type" and isinstance(item, UtcDateTime) else False


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,  # SQLite cannot alter a column in place
    compare_server_default=True,
    render_item=render,
)
with context.begin_transaction():
    context.run_migrations()
