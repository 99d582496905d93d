"""A small BERT, its tensors under Hugging Face's names, and how it is compared with the original library's."""

import numpy as np

from beacon_jax.models.bert import Bert

MODEL = Bert(vocabulary=20, width=12, depth=2, heads=3, hidden=16, positions=10)
CONFIG = dict(
    model_type="bert",
    vocab_size=20,
    hidden_size=12,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=16,
    max_position_embeddings=10,
    type_vocab_size=2,
    layer_norm_eps=1e-12,
    hidden_act="gelu",
)


def random_state(rng):
    """Random tensors under Hugging Face's names, in the shapes of its own models."""
    D = 12
    shapes = {
        "embeddings.word_embeddings.weight": (20, D),
        "embeddings.position_embeddings.weight": (10, D),
        "embeddings.token_type_embeddings.weight": (2, D),
    }
    norms, dense = ["embeddings.LayerNorm"], {}
    for i in range(2):
        layer = f"encoder.layer.{i}"
        dense |= {f"{layer}.attention.self.{name}": (D, D) for name in ("query", "key", "value")}
        dense |= {f"{layer}.attention.output.dense": (D, D)}
        dense |= {f"{layer}.intermediate.dense": (16, D), f"{layer}.output.dense": (D, 16)}
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
    for name, shape in dense.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in norms:
        shapes |= {f"{name}.weight": (D,), f"{name}.bias": (D,)}
    return {name: rng.normal(size=shape).astype(np.float32) * 0.3 for name, shape in shapes.items()}


def hugging_face_embeddings(theirs, ids, mask):
    """Tokens, and their mean over the mask scaled to length 1, as sentence-transformers computes it."""
    import torch

    with torch.no_grad():
        tokens = theirs(torch.from_numpy(ids).long(), attention_mask=torch.from_numpy(mask).long()).last_hidden_state
        weights = torch.from_numpy(mask).unsqueeze(-1).float()
        mean = (tokens * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
        return tokens.numpy(), torch.nn.functional.normalize(mean).numpy()


def assert_parity(theirs, params, model, rng, T):
    """Embeddings and real tokens within 1e-4 of the original library's, in float32."""
    ids = rng.integers(0, model.vocabulary, (6, T)).astype(np.int32)
    mask = (np.arange(T) < np.linspace(1, T, 6).astype(int)[:, None]).astype(np.int32)
    tokens, embeddings = hugging_face_embeddings(theirs, ids, mask)
    ours = model.apply({"params": params}, ids, mask)
    assert np.abs((np.asarray(ours) - tokens) * mask[..., None]).max() <= 1e-4
    assert np.abs(model.apply({"params": params}, ids, mask, method="embeddings") - embeddings).max() <= 1e-4
