import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax.models.convert import convert_state_dict, resize_positions
from beacon_jax.models.state_dict import read_state_dict
from beacon_jax.models.vit import create_vit
from tests.models.vits import DISTILLED, MODEL, SCALED, assert_parity, timm_state

pytestmark = pytest.mark.usefixtures("torchvision_operators")


@pytest.mark.parametrize("model", [MODEL, DISTILLED, SCALED], ids=["deit", "distilled", "layer_scale"])
def test_timm_names(rng, model):
    state = timm_state(rng, model)
    params = convert_state_dict(state, model)
    image = jnp.asarray(rng.normal(size=(2, 8, 8, 3)), jnp.float32)
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda s: s.shape, model.param_shapes())
    np.testing.assert_array_equal(params["blocks_1"]["mlp"]["fc2"]["kernel"], state["blocks.1.mlp.fc2.weight"].T)
    # The first patch through timm's convolution, as a sum over channels, rows and columns.
    patch = np.asarray(image)[0, :4, :4].transpose(2, 0, 1)
    by_convolution = np.einsum("ochw,chw->o", state["patch_embed.proj.weight"], patch)
    by_ours = np.asarray(image)[0, :4, :4].reshape(-1) @ params["patch_embed"]["proj"]["kernel"]
    np.testing.assert_allclose(by_ours, by_convolution, rtol=1e-4, atol=1e-5)


def test_layer_scale_names(rng):
    state = timm_state(rng, SCALED)
    params = convert_state_dict(state, SCALED)
    np.testing.assert_array_equal(params["blocks_1"]["ls2"]["gamma"], state["blocks.1.ls2.gamma"])
    with pytest.raises(ValueError, match=r"4 missing: blocks\.0\.ls1\.gamma, blocks\.1\.ls1\.gamma"):
        convert_state_dict(timm_state(rng, MODEL), SCALED)


@pytest.mark.parametrize("before", [0, 1, 2])
def test_resized_positions(rng, before):
    positions = rng.normal(size=(1, before + 12, 5)).astype(np.float32)
    assert resize_positions(positions, before, (3, 4), (3, 4)) is positions
    for grid in ((6, 8), (2, 3), (3, 5)):
        resized = resize_positions(positions, before, (3, 4), grid)
        assert resized.shape == (1, before + grid[0] * grid[1], 5) and resized.dtype == np.float32
        np.testing.assert_array_equal(resized[:, :before], positions[:, :before])
        constant = np.broadcast_to(positions[:, :1], positions.shape)
        resized = resize_positions(constant, before, (3, 4), grid)
        np.testing.assert_allclose(resized, np.broadcast_to(positions[:, :1], resized.shape), rtol=1e-5, atol=1e-6)
    # Rows stay rows: what does not change along columns does not after resizing.
    rows = np.broadcast_to(rng.normal(size=(1, 3, 1, 5)), (1, 3, 4, 5)).reshape(1, 12, 5)
    resized = resize_positions(rows, 0, (3, 4), (6, 7)).reshape(6, 7, 5)
    np.testing.assert_allclose(resized, np.broadcast_to(resized[:, :1], resized.shape), rtol=1e-5, atol=1e-5)


def test_positions_that_cannot_be_resized():
    with pytest.raises(ValueError, match=r"expected position embeddings \(1, 1 \+ 2 · 2, width\), got \(1, 6, 3\)"):
        resize_positions(np.zeros((1, 6, 3)), 1, (2, 2), (3, 3))
    with pytest.raises(ValueError, match="a grid has at least one row and column"):
        resize_positions(np.zeros((1, 5, 3)), 1, (2, 2), (0, 3))


@pytest.mark.parametrize("model", [MODEL, DISTILLED], ids=["deit", "distilled"])
def test_a_checkpoint_for_another_image_size(rng, caplog, model):
    state = timm_state(rng, model)
    larger = dataclasses.replace(model, image_size=12)
    with caplog.at_level("WARNING", logger="absl"):
        convert_state_dict(state, model)
        assert not caplog.messages
        params = convert_state_dict(state, larger)
    (message,) = caplog.messages
    assert message == "position embeddings of 2 × 2 patches (images of 8 pixels) resized to 3 × 3 (12 pixels)"
    expected = resize_positions(state["pos_embed"], model.tokens_before, (2, 2), (3, 3))
    np.testing.assert_array_equal(params["pos_embed"], expected)
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, larger.param_shapes())


@pytest.mark.filterwarnings("ignore")  # timm's and torchvision's own
def test_resized_positions_are_timms(rng):
    torch = pytest.importorskip("torch")
    pos_embed = pytest.importorskip("timm.layers.pos_embed")
    for before, old, new in ((1, (14, 14), (24, 24)), (2, (14, 14), (7, 9)), (0, (5, 8), (6, 3))):
        positions = rng.normal(size=(1, before + old[0] * old[1], 6)).astype(np.float32)
        theirs = pos_embed.resample_abs_pos_embed(
            torch.from_numpy(positions), list(new), list(old), num_prefix_tokens=before
        )
        np.testing.assert_allclose(resize_positions(positions, before, old, new), theirs.numpy(), atol=1e-4)


# Fields of ours, and timm's arguments for the same model.
FAMILIES = {
    "AugReg": ({}, {}),
    "LayerScale": (dict(layer_scale=True), dict(init_values=0.5)),
    "DeiT III": (dict(layer_scale=True, class_position=False), dict(init_values=0.5, no_embed_class=True)),
    "DINOv2": (dict(layer_scale=True, classes=0), dict(init_values=0.5, num_classes=0)),
    "DINOv2 with registers": (
        dict(layer_scale=True, classes=0, registers=3, class_position=False),
        dict(init_values=0.5, num_classes=0, reg_tokens=3, no_embed_class=True),
    ),
    "registers with positions": (dict(registers=2), dict(reg_tokens=2)),
    "CLIP": (dict(pre_norm=True, epsilon=1e-5), dict(pre_norm=True)),
    "no class token": (
        dict(class_token=False, pool="avg"),
        dict(class_token=False, global_pool="avg", fc_norm=False),
    ),
    "mean over patches": (dict(pool="avg", norm_after_pool=True), dict(global_pool="avg")),
    "mean over patches, registers": (
        dict(pool="avg", norm_after_pool=True, registers=2, class_token=False),
        dict(global_pool="avg", reg_tokens=2, class_token=False),
    ),
}


@pytest.mark.parametrize("size", [8, 16])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore")
def test_parity_of_families_with_timm(rng, family, size):
    """On images of the checkpoint's size and of another, for which timm resizes the position embeddings."""
    torch = pytest.importorskip("torch")
    transformer = pytest.importorskip("timm.models.vision_transformer")
    fields, arguments = FAMILIES[family]
    model = dataclasses.replace(MODEL, image_size=size, **fields)
    norm = functools.partial(torch.nn.LayerNorm, eps=model.epsilon)
    sizes = dict(patch_size=4, embed_dim=12, depth=2, num_heads=3, num_classes=5, norm_layer=norm) | arguments
    torch.manual_seed(0)
    theirs = transformer.VisionTransformer(img_size=8, **sizes).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    state = {key: tensor.numpy().copy() for key, tensor in theirs.state_dict().items()}
    theirs.set_input_size((size, size))
    assert_parity(theirs, convert_state_dict(state, model), model, rng)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["vision_model.embeddings.class_embedding"],
            "it looks like CLIP or SigLIP in Hugging Face's names, which are not",
        ),
        (["visual.conv1.weight", "logit_scale"], "it looks like CLIP in OpenAI's or OpenCLIP's names"),
        (["dinov2.encoder.layer.0.layer_scale1.lambda1"], "it looks like DINOv2 in Hugging Face's names"),
        (["patch_embed.proj.weight", "register_tokens"], "it looks like DINOv2 in Meta's names, .*; timm's are"),
        (["patch_embed.proj.weight", "attn_pool.latent"], "it looks like SigLIP"),
        (
            ["patch_embed.proj.weight", "blocks.0.attn.relative_position_bias_table"],
            "it looks like BEiT, EVA or DINOv3",
        ),
        (["patch_embed.proj.weight", "decoder_blocks.0.norm1.weight"], "it looks like a masked autoencoder"),
        (["patch_embed.proj.weight", "layers.0.blocks.0.norm1.weight"], "it looks like Swin"),
        (["patch_embed.proj.weight", "blocks_token_only.0.gamma_1"], "it looks like CaiT"),
        (["patch_embed.proj.weight", "blocks.0.attn.q_norm.weight"], "norms of queries and keys"),
        (["patch_embed.proj.weight", "pre_logits.fc.weight"], "a layer before its head"),
        (["layer1.0.conv1.weight"], "it looks like a convolutional network"),
        (["patch_embed.proj.weight", "blocks.0.ls1.gamma"], "it looks like DeiT III or DINOv2 in timm's names"),
        (["patch_embed.proj.weight", "norm_pre.weight"], "it looks like CLIP in timm's names"),
    ],
)
def test_other_families_are_refused_by_name(names, message):
    with pytest.raises(ValueError, match=message) as error:
        convert_state_dict({name: np.zeros((12, 3, 4, 4), np.float32) for name in names}, MODEL)
    assert "\n" not in str(error.value)


def test_what_does_not_fit_is_named(rng):
    state = timm_state(rng, MODEL)
    for change, message in (
        ({"blocks.0.ls1.gamma": np.zeros(12)}, "DeiT III or DINOv2.*1 left over: blocks.0.ls1.gamma"),
        ({"norm.bias": None}, "1 missing: norm.bias"),
        ({"pos_embed": np.zeros((1, 4, 12))}, r"1 misshapen: pos_embed of shape \(1, 4, 12\) for .* \(1, 5, 12\)"),
        ({"patch_embed.proj.weight": np.zeros((12, 48))}, "1 misshapen: patch_embed.proj.weight"),
    ):  # fmt: skip
        changed = {name: a for name, a in (state | change).items() if a is not None}
        with pytest.raises(ValueError, match=message):
            convert_state_dict(changed, MODEL)
    with pytest.raises(
        ValueError, match=r"3 missing: dist_token, head_dist\.weight, head_dist\.bias; 1 misshapen: pos_embed"
    ):
        convert_state_dict(state, DISTILLED)
    with pytest.raises(ValueError, match="neither timm's nor Hugging Face's names"):
        convert_state_dict({"conv1.weight": np.zeros(3)}, MODEL)


@pytest.mark.parametrize("model", [MODEL, DISTILLED], ids=["vit", "distilled"])
@pytest.mark.parametrize("on_disk", [True, False], ids=["on_disk", "in_memory"])
@pytest.mark.filterwarnings("ignore")  # transformers' and torchvision's own
def test_parity_with_hugging_face(tmp_path, rng, model, on_disk):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = dict(hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=48)
    sizes |= dict(image_size=8, patch_size=4, num_labels=5, initializer_range=0.3)
    if model.distilled:
        theirs = transformers.DeiTForImageClassificationWithTeacher(transformers.DeiTConfig(**sizes)).eval()
    else:
        theirs = transformers.ViTForImageClassification(transformers.ViTConfig(**sizes)).eval()
    if on_disk:
        theirs.save_pretrained(tmp_path)
        state = read_state_dict(tmp_path / "model.safetensors")
    else:
        state = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    assert_parity(theirs, convert_state_dict(state, model), model, rng)


def slow(name):
    return pytest.param(name, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "name",
    [
        "deit_tiny_patch16_224",
        "deit_tiny_distilled_patch16_224",
        slow("deit_small_patch16_224"),
        slow("deit_small_distilled_patch16_224"),
        slow("deit_base_patch16_224"),
        slow("deit_base_distilled_patch16_224"),
        slow("vit_small_patch16_224"),
        slow("vit_base_patch16_224"),
        slow("deit3_small_patch16_224"),
        slow("vit_base_patch16_clip_224"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # timm's and torchvision's own
def test_parity_with_timm(rng, name):
    torch, timm = pytest.importorskip("torch"), pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs = timm.create_model(name).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # norms start as ones and zeros, heads as zeros
            parameter.add_(0.05 * torch.randn_like(parameter))
    state = {key: tensor.numpy() for key, tensor in theirs.state_dict().items()}
    model = create_vit(name)
    assert_parity(theirs, convert_state_dict(state, model), model, rng, count=1)
