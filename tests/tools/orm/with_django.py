"""Uses the recipe for Django, whose file is the argument; prints the id of each row that must be sent."""

import os
import sys
from urllib.parse import urlsplit

import django
from django.conf import settings
from django.db import DatabaseError, transaction

url = urlsplit(os.environ["DATABASE_URL"])
settings.configure(
    INSTALLED_APPS=[],
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "HOST": url.hostname,
            "PORT": url.port,
            "USER": url.username,
            "PASSWORD": url.password,
            "NAME": url.path.strip("/"),
        }
    },
)
django.setup()
with open(sys.argv[1]) as file:
    recipe = compile(file.read(), "docs/one-table.md", "exec")
names = {"__name__": "recipe"}
with transaction.atomic():
    exec(recipe, names)
    OutboxEvent = names["OutboxEvent"]
    event = OutboxEvent.objects.get()
    event.refresh_from_db()
    assert event.payload == {"id": 7}, event.payload
    print(event.id)
assert not OutboxEvent.objects.exists()


def order(number):
    return OutboxEvent(aggregatetype="Order", aggregateid="7", type="OrderCreated", payload={"id": number})


with transaction.atomic():  # inserted and deleted, as with Debezium
    event = order(1)
    event.save()
    print(event.id)
    assert event.delete()[0] == 1
with transaction.atomic():  # a savepoint that is kept, and one that is not
    with transaction.atomic():
        event = order(2)
        event.save()
    try:
        with transaction.atomic():
            order(3).save()
            raise LookupError
    except LookupError:
        pass
    assert [one.id for one in OutboxEvent.objects.all()] == [event.id]
    print(event.id)
for one in OutboxEvent.objects.bulk_create([order(number) for number in range(20)]):
    print(one.id)
for refused, problem in [
    (lambda: OutboxEvent.objects.create(aggregatetype="Customer", aggregateid="1", type="T", payload={}), "no route"),
    (lambda: [event := order(4), event.save(), event.save()], "events are facts"),
]:
    try:
        with transaction.atomic():
            refused()
    except DatabaseError as error:
        assert problem in str(error), error
    else:
        raise AssertionError("not refused: " + problem)
