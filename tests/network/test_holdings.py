"""What a node says of its disk, when it has more models than it tells of."""

import attrs

from meshnode.network.holdings import described, told
from meshnode.types.manifest import ModelConfig, ModelManifest, RopeStyle, ShardDescriptor, ShardKind
from meshnode.types.peers import Room

CONFIG = ModelConfig("llama", 1, 8, 8, 1, 1, 8, 16, 64, 1e-5, 1e4, 8, RopeStyle.HALVES)


@attrs.frozen
class Shelf:
    models: tuple

    def manifests(self):
        return self.models

    def aliases(self, _model):
        return ()

    def held(self, model):
        return frozenset({f"block of {model}"})


def shelf(count):
    names = [f"m{number:03}" for number in range(count)]
    blocks = {name: ShardDescriptor(f"block of {name}", ShardKind.BLOCK, 0, 10, (), ()) for name in names}
    return Shelf(tuple(ModelManifest(name, name, CONFIG, (blocks[name],), "F32") for name in names))


def test_a_node_knows_all_of_its_models_and_gives_no_room_that_those_take_which_it_does_not_tell():
    assert len(described(shelf(70))) == 70
    holdings, room = told(shelf(70), Room(budget=1000, uptime=5.0))
    assert [holding.model for holding in holdings] == [f"m{number:03}" for number in range(64)]
    assert room == Room(budget=940, uptime=5.0)
    assert told(shelf(70), Room(budget=30))[1] == Room()


def test_who_tells_all_tells_its_room_as_it_is():
    assert told(shelf(3), Room(budget=1000)) == (described(shelf(3)), Room(budget=1000))
    assert told(shelf(3), None)[1] is None
    assert told(None, Room(budget=9)) == ((), Room(budget=9))
