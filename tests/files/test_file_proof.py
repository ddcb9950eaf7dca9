"""Whether shards are all of what a hub has: its files are put together from them, and hashed."""

import attrs
import pytest
from support.hub_server import run_hub
from support.tiny_checkpoint import write_tiny_checkpoint
from support.tiny_gguf import write_tiny_llama

from meshnode.config.paths import DataPaths
from meshnode.files.file_proof import differences
from meshnode.files.hub_client import Hub
from meshnode.files.hub_source import HubSource
from meshnode.files.importing import import_model
from meshnode.files.shard_file import shard_file_name
from meshnode.files.share_making import ShareMaker
from meshnode.flow.lanes import Lanes

pytestmark = pytest.mark.processes


def gguf(folder):
    write_tiny_llama(folder / "m.gguf", quantization="Q8_0", rope_freqs=True, tied=True, split=12)


def checkpoint(folder):
    write_tiny_checkpoint(folder, files=2)


@pytest.mark.parametrize(
    ("write", "file"), [(gguf, "m-00001-of-00002.gguf"), (checkpoint, "model-00002-of-00002.safetensors")]
)
async def test_shards_are_what_the_files_have_or_are_not(tmp_path, write, file):
    lanes, paths = Lanes(), DataPaths(tmp_path / "data")
    folder, shards, scratch = (tmp_path / name for name in ("model", "shards", "scratch"))
    for each in (shards, scratch, scratch / "1", scratch / "2"):
        each.mkdir()
    folder.mkdir(exist_ok=True)
    write(folder)
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with run_hub() as hub:
        hub.repositories["some/one"] = files
        source = HubSource(Hub(hub.endpoint), lanes, paths.transfers, pause=0.01)
        maker = ShareMaker(Hub(hub.endpoint), lanes, paths, pause=0.01)
        async with source.prepared("hf:some/one", scratch / "1", lambda _done, _total: None) as opener:
            with opener() as model:
                manifest = import_model(model, shards, lambda _kind, _block: True, lambda _done, _total: None)
        outline = await source.outline("hf:some/one", scratch / "2")
        where = {shard: shards / shard_file_name(each.id) for shard, each in outline.described(manifest).items()}
        assert await differences(maker, outline.whole, where) == ()
        changed = [attrs.evolve(each, sha256=None) for each in outline.whole.files]
        assert await differences(maker, attrs.evolve(outline.whole, files=tuple(changed)), where) is None
        ends = {shard.kind.value: path for shard, path in where.items() if shard.block is None}
        # In a tensor, one that another shard has too, and in a shard's own header.
        for kind, place, odd in (("embedding", -1, file), ("head", 200, "head")):
            honest = ends[kind].read_bytes()
            altered = bytearray(honest)
            altered[place] ^= 1
            ends[kind].write_bytes(altered)
            assert await differences(maker, outline.whole, where) == (odd,)
            ends[kind].write_bytes(honest)
