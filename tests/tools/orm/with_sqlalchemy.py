"""Uses the recipe for SQLAlchemy, whose file is the argument; prints the id of each row that must be sent."""

import os
import sys
import warnings

from sqlalchemy import create_engine, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.orm.exc import ObjectDeletedError

warnings.simplefilter("error")  # SQLAlchemy only warns if a DELETE finds no row.


class Base(DeclarativeBase):
    pass


url = os.environ["DATABASE_URL"].replace("postgres://", "postgresql+psycopg://")
engine = create_engine(url)
with open(sys.argv[1]) as file:
    recipe = compile(file.read(), "docs/one-table.md", "exec")
with Session(engine) as session:
    names = {"Base": Base, "session": session, "__name__": "recipe"}
    exec(recipe, names)
    OutboxEvent = names["OutboxEvent"]
    [event] = session.new
    session.flush()
    session.refresh(event)
    assert event.payload == {"id": 7}
    print(event.id)
    session.commit()
    try:
        event.type
    except ObjectDeletedError:
        pass
    else:
        raise AssertionError("the row is shown after the commit")


def order(number):
    return OutboxEvent(aggregatetype="Order", aggregateid="7", type="OrderCreated", payload={"id": number})


with Session(engine, expire_on_commit=False) as session:  # inserted and deleted, as with Debezium
    event = order(1)
    session.add(event)
    session.flush()
    session.delete(event)
    session.commit()
    print(event.id)
with Session(engine, expire_on_commit=False) as session:  # a savepoint that is kept, and one that is not
    with session.begin_nested():
        session.add(event := order(2))
    nested = session.begin_nested()
    session.add(order(3))
    session.flush()
    nested.rollback()
    assert session.scalars(select(OutboxEvent)).all() == [event]
    session.commit()
    print(event.id)
with Session(engine) as session:  # many at once
    events = [order(number) for number in range(20)]
    session.add_all(events)
    session.flush()
    ids = [event.id for event in events]
    session.commit()
    print(*ids, sep="\n")
with Session(engine) as session:
    session.add(OutboxEvent(aggregatetype="Customer", aggregateid="1", type="T", payload={}))
    try:
        session.commit()
    except DBAPIError as error:
        assert "aggregatetype 'Customer' has no route" in str(error), error
    else:
        raise AssertionError("a row without a route was accepted")
