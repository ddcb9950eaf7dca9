"""What has come of a model in one way is not fetched again in the other."""

from pathlib import Path

import pytest
from support.tiny_gguf import write_tiny_llama

from meshnode.files.hub_choice import HubFile
from meshnode.files.hub_client import HubRepository
from meshnode.files.hub_mirror import open_mirror
from meshnode.files.hub_outline import outline_of
from meshnode.files.importing import import_gguf
from meshnode.files.local_gguf import open_gguf
from meshnode.files.part_file import open_part
from meshnode.files.salvage import blocks_from_parts, is_anything_begun, parts_from_blocks
from meshnode.files.shard_file import shard_path
from meshnode.types.manifest import CHUNK_BYTES


class Model:
    """A file, what its header says, and its shards."""

    def __init__(self, folder: Path) -> None:
        self.path = write_tiny_llama(
            folder / "m.gguf", blocks=2, hidden=512, heads=4, feed_forward=1536, quantization="Q8_0", tied=True
        )
        self.bytes, self.shards = self.path.read_bytes(), folder / "shards"
        manifest = import_gguf(self.path, self.shards)
        file = HubFile("m.gguf", len(self.bytes), "oid")
        with open_gguf(self.path) as model:
            outline = outline_of(model, HubRepository("some/one", "c0ffee", (file,)), (file,), {self.path: 0})
        described = {(each.kind, each.block): each for each in manifest.shards}
        self.share = outline.whole
        self.said = {each: described[each.kind, each.block] for each in outline.whole.shards}

    def mirror(self, folder):
        return open_mirror(folder, "oid", len(self.bytes))

    def chunk(self, shard, number):
        return shard_path(self.shards, shard.id).read_bytes()[number * CHUNK_BYTES :][:CHUNK_BYTES]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return Model(tmp_path_factory.mktemp("model"))


def test_blocks_of_a_file_make_chunks_of_shards(model, tmp_path):
    parts_from_blocks(model.share, model.said, tmp_path)
    assert not is_anything_begun(tmp_path, model.said.values())
    mirror = model.mirror(tmp_path)
    last = len(mirror.blocks_of(0, mirror.nbytes)) - 1
    for block in range(last):
        mirror.write(block, model.bytes[mirror.start_of(block) :][: mirror.size_of(block)])
    mirror.close()
    parts_from_blocks(model.share, model.said, tmp_path)
    assert is_anything_begun(tmp_path, ())
    parts = [open_part(tmp_path, shard) for shard in model.said.values()]
    lacking = sum(part.shard.nbytes - part.done_bytes for part in parts)
    assert 0 < lacking <= 3 * CHUNK_BYTES, "what the last block is a piece of"


def test_what_is_not_as_the_manifest_says_is_left(model, tmp_path):
    mirror = model.mirror(tmp_path)
    for block in mirror.blocks_of(0, mirror.nbytes):
        mirror.write(block, bytes(mirror.size_of(block)))
    mirror.close()
    parts_from_blocks(model.share, model.said, tmp_path)
    assert not any(open_part(tmp_path, shard).held for shard in model.said.values())


def test_chunks_of_shards_make_blocks_of_a_file(model, tmp_path):
    blocks = {place: shard for place, shard in model.said.items() if place.block == 1}
    (shard,) = blocks.values()
    part = open_part(tmp_path, shard)
    for number in range(1, len(shard.chunks)):  # the first is not there
        part.write(number, model.chunk(shard, number))
    part.close()
    blocks_from_parts(model.share, model.said, tmp_path)
    mirror = model.mirror(tmp_path)
    assert mirror.held
    for block in mirror.held:
        start = mirror.start_of(block)
        assert mirror.read(start, start + mirror.size_of(block)) == model.bytes[start:][: mirror.size_of(block)]
    held = mirror.held_bytes(mirror.held)
    assert held >= shard.nbytes - 2 * CHUNK_BYTES
    assert held <= shard.nbytes - CHUNK_BYTES
