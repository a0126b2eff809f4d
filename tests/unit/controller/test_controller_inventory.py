"""Listings and watches overlap: the later state of an object counts, whichever brings it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from zhongjing.backends.kubernetes.trainingpipeline import Pipeline, Pipelines
from zhongjing.controller.inventory import Inventory


def state(name: str, version: int, uid: str = "") -> Pipeline:
    metadata = {"name": name, "namespace": "ns", "uid": uid or name, "resourceVersion": str(version)}
    return Pipeline({"metadata": metadata})


class Collection:
    """A collection that changes while it is listed: no real one does so when a test wants it."""

    def __init__(self) -> None:
        self.items: list[Pipeline] = []
        self.meanwhile: Callable[[], Any] = lambda: None

    def find(self) -> tuple[list[Pipeline], str]:
        listed = list(self.items)
        self.meanwhile()
        return listed, "1"


@pytest.fixture
def collection() -> Collection:
    return Collection()


@pytest.fixture
def inventory(collection: Collection) -> Inventory:
    return Inventory(cast(Pipelines, collection), 3600.0)


def versions(inventory: Inventory) -> dict[str, int]:
    return {each.name: int(each.version) for each in inventory.all()}


def test_it_is_listed_when_it_is_due(inventory: Inventory, collection: Collection) -> None:
    collection.items = [state("a", 1)]
    assert inventory.refresh()
    collection.items = [state("b", 2)]
    assert not inventory.refresh()
    assert versions(inventory) == {"a": 1}
    inventory.expire()
    assert inventory.refresh()
    assert versions(inventory) == {"b": 2}


def test_a_change_during_a_listing_is_not_lost(inventory: Inventory, collection: Collection) -> None:
    collection.items = [state("a", 1), state("b", 2)]
    inventory.refresh()

    def change() -> None:
        inventory._take("MODIFIED", state("a", 7))
        inventory._take("DELETED", state("b", 8))

    collection.meanwhile = change
    inventory.expire()
    inventory.refresh()
    assert versions(inventory) == {"a": 7}
    # The next listing sees for itself; a new object of the name is another one.
    collection.meanwhile = lambda: None
    collection.items = [state("a", 7), state("b", 9, uid="2")]
    inventory.expire()
    inventory.refresh()
    assert versions(inventory) == {"a": 7, "b": 9}


def test_what_was_written_hides_no_later_edit(inventory: Inventory, collection: Collection) -> None:
    collection.items = [state("a", 1), state("b", 2)]
    inventory.refresh()
    inventory._take("MODIFIED", state("a", 6))  # the user suspends while the controller writes
    inventory.put(state("a", 5))
    assert versions(inventory)["a"] == 6
    inventory._take("MODIFIED", state("a", 5))  # its own write comes back
    assert versions(inventory)["a"] == 6
    inventory.put(state("a", 8))
    assert versions(inventory)["a"] == 8
    inventory._take("DELETED", state("b", 9))
    inventory.put(state("b", 7))
    assert "b" not in versions(inventory), "an object that is gone came back"
