"""Statements that are compiled once and run by the driver itself.

SQLAlchemy builds and checks a statement anew each time it runs; for what every call of a key does,
that would cost several times what the database's own work does. Tables and types are the models'.
"""

from collections import namedtuple
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from sqlalchemy import Dialect, Engine, Insert, Select, Update
from sqlalchemy.exc import DBAPIError

Values = Mapping[str, object]


class CompiledStatement:
    """A statement with named parameters (`bindparam`), for any database that is asked.

    `columns` of an insert are those that get a value; `row` is what a select's rows are made as,
    by default a named tuple of its columns.
    """

    def __init__(
        self,
        statement: Select[object] | Insert | Update,
        columns: Sequence[str] | None = None,
        row: type[tuple[object, ...]] | None = None,
    ) -> None:
        self.statement, self.columns, self.row = statement, columns, row
        self._compiled: dict[str, _Compiled] = {}

    def on(self, dialect: Dialect) -> "_Compiled":
        found = self._compiled.get(dialect.name)
        if found is None:
            found = self._compiled[dialect.name] = _Compiled(self, dialect)
        return found


Statement = tuple[CompiledStatement, Values]  # with what it is run with


class _Compiled:
    """A statement as one kind of database takes it: its text, parameters and rows."""

    def __init__(self, source: CompiledStatement, dialect: Dialect) -> None:
        statement = source.statement
        compiled: Any = statement.compile(dialect=dialect, column_keys=source.columns)
        self.sql = str(compiled)
        self._positional: bool = compiled.positional
        names = compiled.positiontup if compiled.positional else list(compiled.binds)
        self._binds = [
            (name, compiled.binds[name].type.dialect_impl(dialect).bind_processor(dialect))
            for name in names
        ]
        self._constant = {n: b.value for n, b in compiled.binds.items() if not b.required}
        if isinstance(statement, Select):
            selected = statement.selected_columns
            of_types = [
                c.type.dialect_impl(dialect).result_processor(dialect, None) for c in selected
            ]
            self._to_python = [(n, process) for n, process in enumerate(of_types) if process]
            self._row = partial(tuple.__new__, source.row or namedtuple("Row", selected.keys()))

    def parameters(self, values: Values) -> object:
        if self._constant:
            values = {**self._constant, **values}
        if self._positional:
            return [values[n] if p is None else p(values[n]) for n, p in self._binds]
        return {n: values[n] if p is None else p(values[n]) for n, p in self._binds}

    def rows(self, raws: Sequence[Sequence[object]]) -> list[Any]:
        rows = []
        for raw in raws:
            values = list(raw)
            for number, process in self._to_python:
                values[number] = process(values[number])
            rows.append(self._row(values))
        return rows


class RawConnection:
    """A connection as its driver has it. Rows are named tuples of Python values.

    Whatever the driver raises becomes the exception that SQLAlchemy has for it.
    """

    def __init__(self, driver: Any, engine: Engine) -> None:
        self.driver, self.engine, self.dialect = driver, engine, engine.dialect
        self.errors = engine.dialect.loaded_dbapi.Error

    def all(self, statement: CompiledStatement, **values: object) -> list[Any]:
        compiled = statement.on(self.dialect)
        parameters = compiled.parameters(values)
        try:
            raws = self.driver.execute(compiled.sql, parameters).fetchall()
        except self.errors as error:
            raise translated(error, self.engine) from error
        return compiled.rows(raws)

    def first(self, statement: CompiledStatement, **values: object) -> Any | None:
        rows = self.all(statement, **values)
        return rows[0] if rows else None

    def run(self, statement: CompiledStatement, values: Values) -> None:
        compiled = statement.on(self.dialect)
        parameters = compiled.parameters(values)
        try:
            self.driver.execute(compiled.sql, parameters)
        except self.errors as error:
            raise translated(error, self.engine) from error


def translated(error: Exception, engine: Engine) -> DBAPIError:
    """SQLAlchemy's own exception for one of the driver's."""
    dialect = engine.dialect
    return DBAPIError.instance(  # type: ignore[return-value]
        None, None, error, dialect.loaded_dbapi.Error, hide_parameters=True, dialect=dialect
    )
