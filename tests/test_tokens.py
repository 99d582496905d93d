import numpy as np
import pytest

from experiments.tokens import (
    SEPARATOR,
    ArrayBatches,
    encode,
    load_tokenizer,
    padded,
    tokenizer_path,
    train_tokenizer,
    windows,
)


def test_padding():
    batch = padded([[5, 6, 7], [8]], 4, pad=9)
    np.testing.assert_array_equal(batch["ids"], [[5, 6, 7, 9], [8, 9, 9, 9]])
    np.testing.assert_array_equal(batch["mask"], [[1, 1, 1, 0], [1, 0, 0, 0]])
    assert batch["ids"].dtype == batch["mask"].dtype == np.int32
    for sequence in ([], [1] * 5):
        with pytest.raises(ValueError, match=f"a sequence of {len(sequence)} tokens does not fit rows of 4"):
            padded([[1], sequence], 4)


def test_windows_predict_every_token_once():
    documents = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
    rows = windows(documents, 4, separator=99)
    assert {array.shape for array in rows.values()} == {(3, 4)}
    ids, targets, mask = (rows[name].ravel() for name in ("ids", "targets", "mask"))
    assert ids[mask == 1].tolist() == [99, 1, 2, 3, 99, 4, 99, 5, 6, 7, 8, 9]
    assert targets[mask == 1].tolist() == [1, 2, 3, 99, 4, 99, 5, 6, 7, 8, 9, 99]
    rows = windows(documents, 5, separator=99)
    np.testing.assert_array_equal(rows["mask"], [[1] * 5, [1] * 5, [1, 1, 0, 0, 0]])
    np.testing.assert_array_equal(rows["ids"][2], [8, 9, 99, 99, 99])
    np.testing.assert_array_equal(rows["targets"][2], [9, 99, 99, 99, 99])


def test_batches_are_the_same_each_time():
    arrays = {"ids": np.arange(14).reshape(7, 2), "mask": np.arange(7)}
    batches = ArrayBatches(arrays, 3)
    assert [len(batch["mask"]) for batch in batches] == [3, 3, 1] and len(batches) == 3
    for _ in range(2):
        np.testing.assert_array_equal(np.concatenate([batch["ids"] for batch in batches]), arrays["ids"])


def test_drawing_rows():
    batches = ArrayBatches({"ids": np.arange(50), "twice": 2 * np.arange(50)}, 4)
    drawn, again, other = (batches.drawn(10, seed).arrays for seed in (3, 3, 4))
    assert len(set(drawn["ids"])) == 10
    np.testing.assert_array_equal(drawn["twice"], 2 * drawn["ids"])
    np.testing.assert_array_equal(drawn["ids"], again["ids"])
    assert set(drawn["ids"]) != set(other["ids"])
    for count in (0, 51):
        with pytest.raises(ValueError, match=f"{count} examples were asked for; there are 50"):
            batches.drawn(count, 0)


def test_mistakes():
    for arrays in ({}, {"a": np.zeros(0)}, {"a": np.zeros(2), "b": np.zeros(3)}):
        with pytest.raises(ValueError, match="batches need arrays of one length of at least 1, got"):
            ArrayBatches(arrays, 2)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        ArrayBatches({"a": np.zeros(2)}, 0)


def test_tokenizer(tmp_path):
    pytest.importorskip("tokenizers")
    texts = ["the same words, the same words — again", "the last\n\twords"]
    tokenizer = train_tokenizer(texts, 280)
    assert tokenizer.get_vocab_size() == 280 and tokenizer.token_to_id(SEPARATOR) == 0
    unseen = "words «never» seen \U0001f600"
    ids = encode(tokenizer, [*texts, unseen])
    assert tokenizer.decode_batch(ids) == [*texts, unseen]
    assert len(ids[0]) < len(texts[0].encode()) and all(0 not in sequence for sequence in ids)
    path = tokenizer_path(tmp_path / "model.safetensors")
    assert path.name == "model.tokenizer.json"
    path.write_text(tokenizer.to_str(pretty=False), encoding="utf-8")
    assert encode(load_tokenizer(path), texts) == ids[:2]
    assert train_tokenizer(texts, 280).to_str() == tokenizer.to_str()
    path.write_text(path.read_text(encoding="utf-8")[:-5], encoding="utf-8")
    with pytest.raises(ValueError, match="is not a tokenizer's JSON"):
        load_tokenizer(path)
    with pytest.raises(FileNotFoundError, match="no tokenizer at"):
        load_tokenizer(tmp_path / "none")
