"""Checkpoints of encoders: what is read of them, and what is refused by name."""

import json

import pytest
from support.tiny_bert import write_tiny_bert

from meshnode.errors import InvalidModelFile, UnsupportedModel
from meshnode.files.bert_checkpoint import bert_tensor_name
from meshnode.files.safetensors_folder import SafetensorsFolder, open_folder


def config_of(folder):
    with open_folder(folder) as model:
        return model.config


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("pooling_mode_cls_token", "cls"),
        ("pooling_mode_mean_tokens", "mean"),
        ("pooling_mode_mean_sqrt_len_tokens", "mean"),
        ("pooling_mode_lasttoken", "last"),
        (None, "mean"),
    ],
)
def test_the_pooling_is_the_checkpoints(tmp_path, said, meant):
    config = config_of(write_tiny_bert(tmp_path, said))
    assert (config.pooling, config.causal) == (meant, False)


async def test_a_change_of_the_pooling_is_a_change_of_the_source(tmp_path):
    before = await SafetensorsFolder().look(str(write_tiny_bert(tmp_path)))
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    assert (await SafetensorsFolder().look(str(tmp_path))).version != before.version


@pytest.mark.parametrize(
    ("file", "value", "message"),
    [
        ("modules.json", [{"type": "sentence_transformers.models.Dense"}], "through a 'Dense'"),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "pooling_mode_max_tokens cannot be made"),
        (
            "1_Pooling/config.json",
            {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
            "cls_token, pooling_mode_mean_tokens cannot be made",
        ),
    ],
)
def test_another_way_to_make_vectors_is_refused(tmp_path, file, value, message):
    (write_tiny_bert(tmp_path) / file).write_text(json.dumps(value))
    with pytest.raises(UnsupportedModel, match=message):
        config_of(tmp_path)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"hidden_act": "gelu_new"}, UnsupportedModel, "gelu_new"),
        ({"position_embedding_type": "relative_key"}, UnsupportedModel, "relative_key"),
        ({"num_attention_heads": 5}, InvalidModelFile, "cannot be shared by 5 heads"),
        ({"max_position_embeddings": 64}, InvalidModelFile, r"position_embd\.weight' should have shape \(64, 32\)"),
        ({"num_hidden_layers": 4}, InvalidModelFile, "lacks 16 of 69 tensors"),
    ],
)
def test_what_cannot_be_computed_is_refused(tmp_path, settings, error, message):
    with pytest.raises(error, match=message):
        config_of(write_tiny_bert(tmp_path, **settings))


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("normalizer", {"type": "BertNormalizer", "clean_text": False}, "normalizer.*cannot be read"),
        ("pre_tokenizer", {"type": "Whitespace"}, "Whitespace"),
        ("model", {"type": "WordPiece", "vocab": {"a": 0}, "max_input_chars_per_word": 20}, "words up to 20"),
    ],
)
def test_another_way_to_cut_words_is_refused(tmp_path, part, value, message):
    file = write_tiny_bert(tmp_path) / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {part: value}))
    with pytest.raises(UnsupportedModel, match=message):
        config_of(tmp_path)


def test_a_vocabulary_without_its_unknown_token_is_refused(tmp_path):
    file = write_tiny_bert(tmp_path) / "tokenizer.json"
    file.write_text(file.read_text().replace('"unk_token": "[UNK]"', '"unk_token": "<unk>"'))
    with pytest.raises(InvalidModelFile, match="<unk>"):
        config_of(tmp_path)


def test_tensors_that_are_not_needed_are_left_and_strange_ones_refused():
    assert bert_tensor_name("bert.pooler.dense.weight") is None
    assert bert_tensor_name("bert.encoder.layer.2.output.dense.bias") == "blk.2.ffn_down.bias"
    with pytest.raises(UnsupportedModel, match=r"cls\.predictions"):
        bert_tensor_name("cls.predictions.bias")
