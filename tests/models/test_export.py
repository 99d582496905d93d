import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from beacon_jax.models.convert import convert_state_dict
from beacon_jax.models.convert_bert import convert_bert_state_dict
from beacon_jax.models.export import save_state_dict, to_state_dict
from beacon_jax.models.state_dict import read_state_dict
from beacon_jax.models.vit import ViT
from tests.models.berts import CONFIG
from tests.models.berts import MODEL as BERT
from tests.models.berts import assert_parity as assert_bert_parity
from tests.models.vits import DISTILLED, MODEL, SCALED, assert_parity, timm_state

pytestmark = pytest.mark.usefixtures("torchvision_operators")
GREY = ViT(image_size=8, patch_size=2, width=12, depth=1, heads=3, channels=1, classes=5)


def random_params(model, rng):
    return jax.tree.map(lambda s: jnp.asarray(0.3 * rng.normal(size=s.shape), jnp.float32), model.param_shapes())


@pytest.mark.parametrize("naming", ["timm", "hf"])
@pytest.mark.parametrize("model", [MODEL, DISTILLED, SCALED, GREY], ids=["deit", "distilled", "layer_scale", "grey"])
def test_our_own_conversion_gives_the_same_back(tmp_path, rng, model, naming):
    params = random_params(model, rng)
    if naming == "hf" and model.layer_scale:
        with pytest.raises(ValueError, match="no layer scale; export the model in timm's naming"):
            to_state_dict(params, model, naming)
        return
    said = save_state_dict(tmp_path / "new" / "model.safetensors", params, model, naming)
    assert "codes, scales, alphabets and what was done are not in this file" in said
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["model.safetensors"]
    state = read_state_dict(tmp_path / "new" / "model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, convert_state_dict(state, model), params)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(registers=2), "registers"),
        (dict(pre_norm=True, class_position=False), "norm before the blocks, class token without a position"),
        (dict(class_token=False, pool="avg", norm_after_pool=True), "models without a class token, norm after pooling"),
        (dict(pool="avg", classes=0), "mean pooling, classifier without classes"),
    ],
)
def test_models_of_timm_alone(changes, said):
    model = MODEL.clone(**changes)
    params = jax.tree.map(lambda s: np.zeros(s.shape, np.float32), model.param_shapes())
    with pytest.raises(ValueError, match=f"have no {said}; export the model in timm's naming"):
        to_state_dict(params, model, "hf")
    back = convert_state_dict(to_state_dict(params, model, "timm"), model)
    assert jax.tree.structure(back) == jax.tree.structure(params)


@pytest.mark.parametrize("model", [MODEL, DISTILLED, SCALED], ids=["deit", "distilled", "layer_scale"])
def test_timms_own_tensors_come_back(rng, model):
    state = timm_state(rng, model)
    again = to_state_dict(convert_state_dict(state, model), model, "timm")
    assert again.keys() == state.keys()
    for name, array in state.items():
        np.testing.assert_array_equal(again[name], array)


def test_bert(tmp_path, rng):
    params = random_params(BERT, rng)
    save_state_dict(tmp_path / "m", params, BERT, "hf")
    jax.tree.map(np.testing.assert_array_equal, convert_bert_state_dict(load_file(tmp_path / "m"), BERT), params)
    with pytest.raises(ValueError, match="timm has no BERT"):
        to_state_dict(params, BERT, "timm")


def test_errors(rng):
    params = random_params(MODEL, rng)
    with pytest.raises(ValueError, match="unknown naming 'torch'; expected one of timm, hf"):
        to_state_dict(params, MODEL, "torch")
    with pytest.raises(ValueError, match=r"not the parameters of the model given: dist_token .* is in one of them"):
        to_state_dict(params, DISTILLED, "timm")


@pytest.mark.parametrize("model", [MODEL, SCALED], ids=["deit", "layer_scale"])
@pytest.mark.filterwarnings("ignore")  # timm's and torchvision's own
def test_timm_loads_it(tmp_path, rng, model):
    pytest.importorskip("torch")
    transformer = pytest.importorskip("timm.models.vision_transformer")
    helpers = pytest.importorskip("timm.models")
    params = random_params(model, rng)
    save_state_dict(tmp_path / "model.safetensors", params, model, "timm")
    sizes = dict(img_size=8, patch_size=4, embed_dim=12, depth=2, num_heads=3, num_classes=5)
    theirs = transformer.VisionTransformer(**sizes, init_values=0.5 if model.layer_scale else None).eval()
    helpers.load_checkpoint(theirs, str(tmp_path / "model.safetensors"), strict=True)
    assert_parity(theirs, params, model, rng)


@pytest.mark.parametrize("model", [MODEL, DISTILLED], ids=["vit", "distilled"])
@pytest.mark.filterwarnings("ignore")  # transformers' and torchvision's own
def test_transformers_loads_it(tmp_path, rng, model):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    sizes = dict(hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=48)
    sizes |= dict(image_size=8, patch_size=4, num_labels=5)
    name = "DeiT" if model.distilled else "ViT"
    kind = "DeiTForImageClassificationWithTeacher" if model.distilled else "ViTForImageClassification"
    getattr(transformers, f"{name}Config")(**sizes).save_pretrained(tmp_path)
    params = random_params(model, rng)
    save_state_dict(tmp_path / "model.safetensors", params, model, "hf")
    theirs, loading = getattr(transformers, kind).from_pretrained(tmp_path, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert_parity(theirs.eval(), params, model, rng)


@pytest.mark.filterwarnings("ignore")  # transformers' own
def test_transformers_loads_a_bert(tmp_path, rng):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    params = random_params(BERT, rng)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    save_state_dict(tmp_path / "model.safetensors", params, BERT, "hf")
    theirs, loading = transformers.BertModel.from_pretrained(
        tmp_path, add_pooling_layer=False, output_loading_info=True
    )
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert_bert_parity(theirs.eval(), params, BERT, rng, 10)
