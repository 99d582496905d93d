"""What a layer's codes are to minimise, in the form that beacon_plus works with.

For codes q and a scale c of one channel w, with an offset z and a change b of the layer's bias where these are free,

    ‖Xw − X̃(c q + z 1) − b 1‖² + ρ Σ S_tt (w_t − c q_t − z)²  =  constant + c² qᵀP q − 2 c hᵀq

after eliminating b and z, P = S + ρ diag(S) and h = C w + ρ diag(S) w, S and C being X̃ᵀX̃ and X̃ᵀX, of inputs minus
their means where b is free, and with the direction of z taken out of both sides where z is free. The ridge ρ stands for
what the calibration rows do not tell: between inputs that vary as much, differences of sampling are as large. A layer
that is added to a residual stream may aim at Xw + λ(r − r̃) (see residual.py): h then has λ X̃ᵀ(r − r̃) added to it.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.linalg import cho_factor, cho_solve
from jaxtyping import Float

from beacon_jax.quant.gram import GramStats
from beacon_jax.quant.moments import outer
from beacon_jax.quant.products import matmul
from beacon_jax.quant.triangular import quadratic_form

LITTLE = 1e-3  # of the mean of diag(P): ridge of the weights that a decoder aims at

Grams = tuple[
    Float[Array, "N N"], Float[Array, "N N"] | None, Float[Array, "N N"] | None
]  # H, G, F; H alone for one stream


@jax.jit
def grams_of(stats: GramStats) -> Grams:
    """H, G and F (G and F None for one stream) times a power of two that brings diag(H) near 1.

    Products of six of them must fit in float32. It changes no code, and cancels in the scale.
    """
    H, others = stats.H, (None, None) if stats.one_stream else (stats.G, stats.F)
    _, exponent = jnp.frexp(jnp.diagonal(H).mean())
    factor = jnp.ldexp(jnp.ones((), H.dtype), -exponent)
    return jax.tree.map(lambda a: a * factor, (H, *others))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Objective:
    """The objective of all channels W (N, C) of a layer.

    Fields:
      P: (N, N), symmetric positive semidefinite.
      h: (N, C), one column a channel.
      target: (N, C) real weights near the minimum of wᵀPw − 2hᵀw; W itself, but for a constant where there is an
        offset, if there is one stream.
      rest: h − P·target, (N, C); None where it is 0 (one stream).
      G: (N, N) with h = G W, but for what a residual stream adds; None where it is P.
      F: (N, N), the same of X alone, None where it is P.
      free: (N,) and (C,) and a scalar, u = P₀1, 1ᵀh₀ and 1ᵀu before the offset was eliminated; None without an offset.

    P, h, G and F are divided by `unit`, a power of two near the mean of diag(P), so that products of several fit.
    """

    P: Float[Array, "N N"]
    h: Float[Array, "N C"]
    target: Float[Array, "N C"]
    rest: Float[Array, "N C"] | None
    G: Float[Array, "N N"] | None
    F: Float[Array, "N N"] | None
    # All channels' even in an objective of some of them, which has no use for it.
    free: tuple[Float[Array, " N"], Float[Array, " all"], Float[Array, ""]] | None
    unit: Float[Array, ""]

    @classmethod
    def of(
        cls,
        W: Float[Array, "N C"],
        stats: GramStats,
        ridge: Float[Array, ""],
        *,
        bias: bool,
        offset: bool,
        residual: Float[Array, ""] | None = None,
    ) -> "Objective":
        """The objective of a kernel W (N, C).

        Args:
          W: the kernel.
          stats: statistics of its inputs.
          ridge: ρ, a scalar ≥ 0.
          bias: whether the layer's bias is free.
          offset: whether an offset is.
          residual: λ, a scalar ≥ 0, for statistics with the change of a residual stream; None to take no notice of it.
        """
        S, C, own_x = map(jnp.asarray, stats.centred if bias else (stats.H, stats.G, stats.F))
        diagonal = jnp.diagonal(S)
        _, exponent = jnp.frexp(diagonal.mean())
        unit = jnp.ldexp(jnp.ones((), S.dtype), exponent)
        own = jnp.diag(ridge * diagonal / unit)
        P = S / unit + own
        G, F = (None, None) if stats.one_stream else (C / unit + own, own_x / unit + own)
        more = None if residual is None else residual / unit * stats.residual_cross(centred=bias)
        free = None
        if offset:
            P, G, F, more, free = _without_offset(P, G, F, W, more)
        h = matmul(P if G is None else G, W)
        h = h if more is None else h + more
        # Weights on inputs that never change are of no effect.
        live = (diagonal > 0)[:, None]
        target = jnp.where(live, W, 0)
        if offset:
            target = jnp.where(live, W - W.mean(0, where=live, keepdims=True), 0)
        rest = None
        if G is not None or more is not None:
            little = LITTLE * jnp.diagonal(P).mean()
            little = jnp.where(little > 0, little, 1)
            factor = cho_factor(P + little * jnp.eye(W.shape[0], dtype=P.dtype), lower=True)
            near, target = target, cho_solve(factor, h + little * target)
            rest = little * (target - near)
        return cls(P, h, target, rest, G, F, free, unit)

    @property
    def grams(self) -> Grams:
        """P, G and F, as Beacon takes its H, G and F."""
        return self.P, self.G, self.F

    def loss(self, q: Float[Array, "N C"]) -> Float[Array, " C"]:
        """(C,) the objective over `unit`, at the best scale, for codes q (N, C), but for a constant of the channel.

        Computed from target − c q, not as a difference of large terms.
        """
        c = self.scale(q)
        error = self.target - c[None, :] * q
        return quadratic_form(self.P, error) + 2 * self._rest_times(error)

    def scale(self, q: Float[Array, "N C"]) -> Float[Array, " C"]:
        """(C,) the best scale of codes q (N, C), 0 where no scale matters."""
        norm = quadratic_form(self.P, q)
        return jnp.where(norm > 0, (self.h * q).sum(0) / jnp.where(norm > 0, norm, 1), 0)

    def loss_from(self, q: Float[Array, "N C"], s: Float[Array, " C"], error: Float[Array, " C"]) -> Float[Array, " C"]:
        """`loss`, from ‖target − s q‖²_P (C,) that is known at a scale s (C,): without a product."""
        at_s = error + 2 * self._rest_times(self.target - s[None, :] * q)
        constant = 2 * (self.h * self.target).sum(0) - self.norm
        a = (self.h * q).sum(0)
        slope = (constant - at_s) / s - a  # hᵀq − s qᵀPq
        norm = (a - slope) / s
        return at_s - jnp.where(norm > 0, jnp.square(slope) / jnp.where(norm > 0, norm, 1), 0)

    @property
    def norm(self) -> Float[Array, " C"]:
        """(C,) targetᵀ P target."""
        moved = self.h if self.rest is None else self.h - self.rest
        return (self.target * moved).sum(0)

    def offset(self, q: Float[Array, "N C"], c: Float[Array, " C"]) -> Float[Array, " C"] | None:
        """(C,) the best offset for codes q and scales c."""
        if self.free is None:
            return None
        u, total, norm = self.free
        return jnp.where(norm > 0, (total - c * matmul(u[None, :], q)[0]) / jnp.where(norm > 0, norm, 1), 0)

    def _rest_times(self, error):
        return 0.0 if self.rest is None else (self.rest * error).sum(0)


def _without_offset(P, G, F, W, more):
    """P, G, F and `more` of h without the direction of the offset, and what the best offset follows from."""
    u = P.sum(1)
    norm = u.sum()
    safe = jnp.where(norm > 0, norm, 1)
    g = u if G is None else G.sum(0)  # Gᵀ1
    total = matmul(g[None, :], W)[0]
    G, F = (None, None) if G is None else (G - outer(u, g) / safe, F - outer(g, g) / safe)
    if more is not None:
        sums = more.sum(0)
        total, more = total + sums, more - outer(u, sums) / safe
    return P - outer(u, u) / safe, G, F, more, (u, total, norm)


def bias_change(
    stats: GramStats, W: Float[Array, "N C"], W_hat: Float[Array, "N C"], residual: Float[Array, ""] | None = None
) -> Float[Array, " C"]:
    """(C,) b with which the mean output is that aimed at again: μᵀw − μ̃ᵀŵ, and λ times the mean of r − r̃."""
    change = matmul(stats.means()[1][None, :], W - W_hat)[0]
    if not stats.one_stream:
        change = change + matmul(stats.mean_change[None, :], W)[0]
    if residual is None:
        return change
    assert stats.residual is not None, "these statistics know of no residual stream"
    return change + residual * stats.residual.total / jnp.where(stats.count > 0, stats.count, 1)
