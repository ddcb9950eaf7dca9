"""What is impossible is said at the start."""

import sys
from pathlib import Path

import attrs
import pytest

from meshnode.config.loading import load_config
from meshnode.config.schema import EngineConfig, NodeConfig
from meshnode.crypto.identity import Identity
from meshnode.errors import ConfigError, UnknownModel, UnsupportedModel
from meshnode.files.local_gguf import LocalGGUF
from meshnode.node import preflight
from meshnode.node.preflight import check_addresses, check_machine, check_models, examine_tokenizer


@attrs.define
class Catalog:
    names: tuple = ()
    references: tuple = ()

    def resolve(self, name):
        if name not in self.names:
            raise UnknownModel("no")

    def by_reference(self, reference):
        return object() if reference in self.references else None


@pytest.mark.skipif(sys.platform != "linux", reason="devices are looked for on Linux alone")
def test_a_gpu_that_is_not_there_is_refused_by_name(monkeypatch, tmp_path):
    monkeypatch.setattr(preflight, "_GPU_DEVICES", (str(tmp_path / "gpu"),))
    wanted = NodeConfig(engine=EngineConfig(device="cuda"))
    with pytest.raises(ConfigError, match=r"engine\.device is cuda.*use auto or cpu"):
        check_machine(wanted)
    check_machine(NodeConfig())
    (tmp_path / "gpu").touch()
    check_machine(wanted)


OWN = Identity(bytes(32)).peer


@pytest.mark.parametrize("key", ["network.bootstrap", "network.announce"])
@pytest.mark.parametrize("address", ["192.0.2.7:8810", "/ip4/192.0.2.7/tcp/8810", "/ip4/192.0.2.7/tcp/8810/p2p/me"])
def test_an_address_that_cannot_be_read_is_refused_with_where_it_came_from(tmp_path, key, address):
    loaded = load_config(flags={"node.data_dir": tmp_path, key: (address,)}, env={}, file=None)
    with pytest.raises(ConfigError, match=rf"{key}: .*\(from flag --{key[8:]}\)"):
        check_addresses(loaded, OWN)


def test_what_is_announced_is_this_nodes_own(tmp_path):
    other = Identity(bytes([1]) * 32).peer

    def check(**network):
        flags = {f"network.{name}": (f"/ip4/192.0.2.7/tcp/8810/p2p/{peer}",) for name, peer in network.items()}
        check_addresses(load_config(flags={"node.data_dir": tmp_path, **flags}, env={}, file=None), OWN)

    check(announce=OWN, bootstrap=other)
    with pytest.raises(ConfigError, match="is not this node's"):
        check(announce=other)


@pytest.mark.parametrize("name", ["/nowhere/model.gguf", "./model.gguf", "model.gguf", "~/no such folder"])
def test_a_path_that_leads_to_nothing_is_refused(name):
    with pytest.raises(ConfigError, match="nothing at"):
        check_models([name], Catalog(), [LocalGGUF()])


def test_a_model_that_was_imported_from_there_may_be_away_for_a_while(tmp_path):
    path = tmp_path / "m.gguf"
    check_models([str(path)], Catalog(references=(LocalGGUF().canonical(str(path)),)), [LocalGGUF()])
    check_models(["m.gguf"], Catalog(names=("m.gguf",)), [])
    path.touch()
    check_models([str(path)], Catalog(), [LocalGGUF()])


def test_names_are_no_paths():
    check_models(["starter", "llama-3.2-1b", "hf:owner/repo"], Catalog(), [])


def test_a_vocabulary_without_a_tokenizer_is_refused_before_the_import(starter_gguf):
    from meshnode.files.local_gguf import open_gguf

    with open_gguf(Path(starter_gguf)) as model:
        examine_tokenizer(model)
        unheard_of = attrs.evolve(model, tokenizer=attrs.evolve(model.tokenizer, pre="unheard-of"))
        with pytest.raises(UnsupportedModel, match="unheard-of"):
            examine_tokenizer(unheard_of)
