"""What several tests of the database ask of it."""

from sqlalchemy import select

from convene_keys.db.session import Base
from convene_keys.db.statements import CompiledStatement
from convene_keys.models import Organization

ORGANIZATIONS = Base.metadata.tables[Organization.__tablename__]
SLUGS = CompiledStatement(select(ORGANIZATIONS.c.slug))
