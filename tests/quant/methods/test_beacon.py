import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax.quant.alphabets import NAMED, Levels, make_alphabet
from beacon_jax.quant.methods import beacon, oracle
from beacon_jax.quant.methods.table import METHODS
from beacon_jax.quant.objective import grams_of
from tests.quant.problems import KINDS, gram, levels_of, make_problem

SWEEPS = 4
ENOUGH = 20  # sweeps, so that all channels come to rest
# Most of the time here is compilation, once for each shape, number of streams, form of alphabet and setting; so most
# tests have their problems in one of these shapes, as two streams, and by blocks as in the comparison with the oracle.
SLOW_SHAPES = (3, 5), (21, 7), (40, 16)
SHAPES = [(1, 1), (8, 4), *(pytest.param(*shape, marks=pytest.mark.slow) for shape in SLOW_SHAPES)]
USER_ALPHABETS = [(-3.0, -1.0, 0.0, 0.5, 2.0), (1.0, 2.0, 4.0, 5.0, 9.0)]  # of one length, which is one compilation
ALPHABETS = [*NAMED, *USER_ALPHABETS]


def quantize64(W, X, X_tilde, alphabet, *, one_stream=False, **options):
    """In float64, by blocks of 16, so that the larger problems have several."""
    stats = gram(X) if one_stream else gram(X, X_tilde.copy())
    return METHODS["beacon"](jnp.asarray(W), stats, alphabet, **{"sweeps": SWEEPS, "block_size": 16, **options})


def quantize32(W, X, X_tilde, alphabet, **options):
    stats = gram(X, X_tilde.copy(), jnp.float32)
    options = {"sweeps": SWEEPS, "block_size": 16, **options}
    return METHODS["beacon"](jnp.asarray(W, jnp.float32), stats, alphabet, **options)


def true_cosines(W, X, X_tilde, q):
    """Cosines in float64 of codes q, from the inputs themselves; signless, as the scale takes either sign."""
    return np.array([abs(oracle.cosine(y, v)) for y, v in zip((X @ W).T, (X_tilde @ q).T, strict=True)])


def oracle_problems(N, C):
    """Each kind of inputs with four alphabets."""
    rng = np.random.default_rng(1000 * N + C)
    for kind in KINDS:
        for i in rng.choice(len(ALPHABETS), 4, replace=False):
            W, X, X_tilde = make_problem(rng, kind, N, C)
            if X_tilde.any():  # else there is nothing to calibrate on
                yield kind, ALPHABETS[i], W, X, X_tilde


@pytest.mark.parametrize(("N", "C"), SHAPES)
def test_equals_the_oracle(x64, N, C):
    """Float64: equal codes, scales, cosines. Float32: the same cosine but for a few near-ties. 32 problems each."""
    differences = []
    for kind, name, W, X, X_tilde in oracle_problems(N, C):
        alphabet = make_alphabet(name)
        q, c, history, fixed = oracle.beacon(W, X, X_tilde, alphabet, SWEEPS)
        # One size tests statistics of one stream as well.
        result = quantize64(W, X, X_tilde, alphabet, one_stream=N == 8 and X_tilde is X)
        np.testing.assert_array_equal(levels_of(result), q, err_msg=f"{kind} {name}")
        np.testing.assert_allclose(result.scale, c, rtol=1e-8, atol=1e-12)
        np.testing.assert_allclose(result.info["cosine_history"], history, atol=1e-9)
        np.testing.assert_array_equal(result.info["fixed_point"], fixed)
        if N < 21:
            continue
        single = quantize32(W, X, X_tilde, alphabet)
        differences.append(true_cosines(W, X, X_tilde, levels_of(single)) - np.abs(history[-1]))
    if differences:
        differences = np.concatenate(differences)
        assert np.mean(np.abs(differences) <= 1e-5) >= 0.98
        assert differences.mean() >= -1e-5


@pytest.mark.parametrize("name", ALPHABETS, ids=str)
def test_equals_the_oracle_with_every_alphabet(x64, name):
    rng = np.random.default_rng(ALPHABETS.index(name))
    alphabet = make_alphabet(name)
    for kind in ("correlated", "mismatch"):
        W, X, X_tilde = make_problem(rng, kind, 21, 7)
        q, c, _, _ = oracle.beacon(W, X, X_tilde, alphabet, SWEEPS)
        result = quantize64(W, X, X_tilde, alphabet)
        np.testing.assert_array_equal(levels_of(result), q)
        np.testing.assert_allclose(result.scale, c, rtol=1e-8)


@pytest.mark.parametrize("name", ["1.58", "2", "4", "int3"])
def test_rank_one_inputs_are_solved_exactly(x64, rng, name):
    """All codes give cosine ±1 or 0 there, so codes are a matter of ties; the cosine must be 1."""
    X = rng.normal(size=(9, 1)) @ rng.normal(size=(1, 8))
    result = quantize64(rng.normal(size=(8, 4)), X, X, make_alphabet(name), one_stream=True)
    np.testing.assert_allclose(result.info["cosine"], 1, atol=1e-9)


def test_scale_is_least_squares_and_info_is_consistent(x64, rng):
    W, X, X_tilde = make_problem(rng, "mismatch", 21, 7)
    result = quantize64(W, X, X_tilde, make_alphabet("2"))
    y, v = X @ W, X_tilde @ levels_of(result)
    np.testing.assert_allclose(result.scale, (y * v).sum(0) / (v * v).sum(0), rtol=1e-5)
    np.testing.assert_allclose(result.info["cosine"], true_cosines(W, X, X_tilde, levels_of(result)), rtol=1e-9)
    np.testing.assert_allclose(result.info["cosine"], result.info["cosine_history"][-1], rtol=1e-9)
    assert np.all(result.info["sweeps"] <= SWEEPS)
    assert np.all(result.info["fixed_point"] | (result.info["sweeps"] == SWEEPS))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_the_cosine_never_falls(x64, kind, dtype):
    rng = np.random.default_rng(7)
    solve = quantize32 if dtype == jnp.float32 else quantize64
    for name in ("1.58", "2", "4", "int3"):
        W, X, X_tilde = make_problem(rng, kind, 21, 7)
        result = solve(W, X, X_tilde, make_alphabet(name), sweeps=ENOUGH)
        assert result.info["cosine_history"].dtype == dtype
        steps = np.diff(np.asarray(result.info["cosine_history"]), axis=0)
        assert steps.min() >= -4 * np.finfo(dtype).eps


@pytest.mark.parametrize("name", ["1.58", "2", "3", "int2", USER_ALPHABETS[0]], ids=str)
def test_a_reported_fixed_point_is_one(x64, rng, name):
    alphabet = make_alphabet(name)
    W, X, X_tilde = make_problem(rng, "mismatch", 21, 7)
    result = quantize64(W, X, X_tilde, alphabet, sweeps=ENOUGH)
    assert result.info["fixed_point"].all()
    q = levels_of(result)
    best = true_cosines(W, X, X_tilde, q)
    for t, p in itertools.product(range(21), alphabet):
        changed = q.copy()
        changed[t] = p
        assert np.all(true_cosines(W, X, X_tilde, changed) <= best + 1e-12)


def test_how_often_tiny_problems_reach_the_global_optimum(x64, rng, record_property):
    """Of N inputs; all others are zero, so that the problems have one shape."""
    reached = []
    for name, N in (("1.58", 8), ("2", 6), ("3", 4), ("4", 4)):
        alphabet = make_alphabet(name)
        every = np.array(list(itertools.product(alphabet, repeat=N))).T  # (N, Kᴺ)
        optimal = []
        for _ in range(3):
            W, X, X_tilde = make_problem(rng, "mismatch", 21, 7)
            X[:, N:] = X_tilde[:, N:] = 0
            found = np.asarray(quantize64(W, X, X_tilde, alphabet, sweeps=ENOUGH).info["cosine"])
            y, v = X @ W, X_tilde[:, :N] @ every
            norm = np.linalg.norm(v, axis=0)
            best = np.abs(y.T @ v[:, norm > 0] / norm[norm > 0]).max(1) / np.linalg.norm(y, axis=0)
            assert np.all(found <= best + 1e-9)  # brute force is never beaten
            optimal += list(found >= best - 1e-9)
        reached.append(float(np.mean(optimal)))
        print(f"{name} bit, N={N}: global optimum in {reached[-1]:.0%} of {len(optimal)} channels")
    record_property("global_optimum_reached", reached)
    assert np.mean(reached) > 0.5 and min(reached) > 0.25  # of 21 channels each; mostly .65 and .48


def test_block_size_and_chunks_do_not_change_the_codes(x64, rng):
    W, X, X_tilde = make_problem(rng, "mismatch", 21, 7)
    expected = quantize64(W, X, X_tilde, make_alphabet("2"))
    for options in (dict(block_size=1), dict(block_size=128), dict(channel_chunk=3)):
        result = quantize64(W, X, X_tilde, make_alphabet("2"), **options)
        np.testing.assert_array_equal(result.codes, expected.codes)
        chex.assert_trees_all_close(result.info, expected.info, atol=1e-12)
    chunked = quantize64(W, X, X_tilde, make_alphabet("int2"), channel_chunk=4)
    np.testing.assert_array_equal(chunked.codes, quantize64(W, X, X_tilde, make_alphabet("int2")).codes)


@pytest.mark.slow
def test_jit_does_not_change_the_codes(x64, rng):
    W, X, X_tilde = make_problem(rng, "mismatch", 3, 2)
    with jax.disable_jit():
        eager = quantize64(W, X, X_tilde, make_alphabet("2"), block_size=2, sweeps=2).codes
    np.testing.assert_array_equal(eager, quantize64(W, X, X_tilde, make_alphabet("2"), sweeps=2).codes)


def test_one_trace_per_layer_shape(rng):
    """Every evenly spaced symmetric alphabet, number of sweeps and any data share the compiled solver of a shape."""
    traced = jax.jit(chex.assert_max_traces(beacon.solve_codes.__wrapped__, n=1), static_argnames=(
        "room", "both_signs", "block_size", "channel_chunk"))  # fmt: skip
    for sweeps, name in enumerate(("1.58", "2", "2.32", "2.58", "3", "4", "8")):
        W, X, _ = make_problem(rng, "white", 12, 5)
        levels = Levels.of(make_alphabet(name), jnp.float32)
        grams = grams_of(gram(X, dtype=jnp.float32))
        how = dict(room=8, both_signs=False, block_size=8, channel_chunk=None)
        traced(jnp.asarray(W, jnp.float32), grams, levels, sweeps, **how)


def test_equal_streams_mean_no_error_correction(rng):
    W, X, _ = make_problem(rng, "correlated", 24, 6)
    one, both = gram(X, dtype=jnp.float32), gram(X, X.copy(), dtype=jnp.float32)
    for centering in beacon.CENTERINGS:
        a, b = (METHODS["beacon"](jnp.asarray(W, jnp.float32), s, "2", centering=centering) for s in (one, both))
        chex.assert_trees_all_equal((a.codes, a.scale), (b.codes, b.scale))
        chex.assert_trees_all_close(a.info, b.info, atol=1e-6)  # ‖Xw‖ is computed by another product


def test_channels_are_independent_and_scale_free(x64, rng):
    W, X, X_tilde = make_problem(rng, "mismatch", 21, 7)
    result = quantize64(W, X, X_tilde, make_alphabet("3"))
    others = rng.normal(size=W.shape)
    others[:, 4] = 8 * W[:, 2]
    among_others = quantize64(others, X, X_tilde, make_alphabet("3"))
    np.testing.assert_array_equal(among_others.codes[:, 4], result.codes[:, 2])
    np.testing.assert_allclose(among_others.scale[4], 8 * result.scale[2], rtol=1e-9)


def test_representable_weights_are_found_exactly(x64, rng):
    """W = c·q with q in the alphabet, starting at the level that fixes the path's scale: zero error."""
    alphabet = make_alphabet("2")
    q = rng.choice(alphabet, size=(21, 7))
    X = rng.normal(size=(60, 21))
    result = quantize64(0.37 * q, X, X, alphabet)
    np.testing.assert_allclose(result.dequantize(), 0.37 * q, atol=1e-9)


def test_centering_adds_the_corrected_mean(x64, rng):
    W, X, X_tilde = make_problem(rng, "mismatch", 8, 4)
    W = W + 3 * rng.normal(size=4)[None, :]
    alphabet = make_alphabet("2")
    mean = W.mean(0)
    centred = quantize64(W - mean[None, :], X, X_tilde, alphabet)
    result = quantize64(W, X, X_tilde, alphabet, centering="mean")
    np.testing.assert_array_equal(result.codes, centred.codes)
    np.testing.assert_allclose(result.scale, centred.scale)
    ones, ones_tilde = X.sum(1), X_tilde.sum(1)
    np.testing.assert_allclose(result.offset, mean * (ones @ ones_tilde) / (ones_tilde @ ones_tilde))
    same = quantize64(W, X, X, alphabet, one_stream=True, centering="mean")
    np.testing.assert_allclose(same.offset, mean)


def test_zero_channels(x64, rng):
    W, X, _ = make_problem(rng, "white", 8, 4)
    W[:, 1] = 0
    result = quantize64(W, X, X, make_alphabet("2"), one_stream=True)
    np.testing.assert_allclose(result.dequantize()[:, 1], 0)
    assert not np.isnan(result.scale).any()


@pytest.mark.parametrize("factor", [1e5, 1e-8])
def test_float32_does_not_depend_on_the_scale_of_the_inputs(rng, factor):
    W, X, X_tilde = make_problem(rng, "mismatch", 21, 7)
    expected = quantize32(W, X, X_tilde, "2").codes
    np.testing.assert_array_equal(quantize32(W, factor * X, factor * X_tilde, "2").codes, expected)


@pytest.mark.parametrize("mean", [3, 20, 300, 3e4])
@pytest.mark.parametrize("sign", ["both", "one"])
def test_float32_with_nearly_constant_inputs(x64, rng, mean, sign):
    """Inputs nearly parallel, and with weights of one sign the outputs even more so: as good as with float64 sums.

    The error is that of what varies in the output, which is small beside the output itself.
    """
    W, X = rng.normal(size=(21, 7)), (rng.normal(size=(400, 21)) + mean).astype(np.float32)
    W = (np.abs(W) if sign == "one" else W).astype(np.float32)
    y = X.astype(np.float64) @ W.astype(np.float64)
    errors = []
    for solve in (quantize32, quantize64):
        q = levels_of(solve(W.astype(np.float64), X, X, "2"))
        v = X.astype(np.float64) @ q
        errors.append(np.square(y - (y * v).sum(0) / (v * v).sum(0) * v).sum(0) / np.square(y - y.mean(0)).sum(0))
    assert errors[0].mean() < 1.05 * errors[1].mean() < 0.5


def test_bad_options(rng):
    W, X, _ = make_problem(rng, "white", 4, 2)
    with pytest.raises(ValueError, match="unknown centering 'median'; expected one of none, mean"):
        METHODS["beacon"](jnp.asarray(W, jnp.float32), gram(X, dtype=jnp.float32), "2", centering="median")
    with pytest.raises(ValueError, match="sweeps must be an integer of at least 0, got -1"):
        METHODS["beacon"](jnp.asarray(W, jnp.float32), gram(X, dtype=jnp.float32), "2", sweeps=-1)
