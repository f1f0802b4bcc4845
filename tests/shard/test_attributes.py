from dakera_cluster.model.memories import Field
from dakera_cluster.shard.attributes import Attributes


def test_what_may_expire_is_counted_through_every_change() -> None:
    attributes = Attributes()
    attributes.grow(3)
    for slot, expires in enumerate((100, None, 200)):
        attributes.set(slot, {Field.EXPIRES: expires})
    assert attributes.expiring == 2
    assert attributes.visible(150_000).tolist() == [False, True, True]
    attributes.set(0, {Field.EXPIRES: 300})
    assert attributes.expiring == 2
    loaded = Attributes.load(*attributes.dump())
    assert loaded.expiring == 2
    assert loaded.visible(250_000).tolist() == [True, True, False]
    for slot in (0, 2):
        loaded.set(slot, {})
    assert loaded.expiring == 0
    assert loaded.visible(900_000).tolist() == [True, True, True]
