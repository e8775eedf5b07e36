"""The losses from their published formulas in numpy's long double, with gradients by hand: an oracle that shares
nothing with fastloss, its reference or autograd. Beside each number stands what rounding may make of it.

Formulas: Lin et al. 2017 (focal), Ridnik et al. 2021, section 3 (asymmetric), Szegedy et al. 2016, section 7
(smoothing), Leng et al. 2022, section 4.1 (poly-1), Li et al. 2019, section 3.2 (GHM-C).
"""

from dataclasses import dataclass

import numpy as np

LONG = np.longdouble


@dataclass
class Decisions:
    """value [N] and its derivative [N, C] (sigmoid: [N, 1]) of every decision, and how far rounding may move them: if
    that is inf, they may be anything."""

    value: np.ndarray
    derivative: np.ndarray
    value_error: np.ndarray
    derivative_error: np.ndarray
    norm: np.ndarray  # 1 - p of the target, [N]

    def times(self, factor, relative_error):
        """relative_error: of the factor [N]."""
        each = factor[:, None]
        return Decisions(
            factor * self.value,
            each * self.derivative,
            anything(np.abs(factor) * (self.value_error + relative_error * np.abs(self.value))),
            anything(np.abs(each) * (self.derivative_error + relative_error * np.abs(self.derivative))),
            self.norm,
        )


def anything(error):
    """0 times what may be anything may be anything."""
    return np.where(np.isnan(error), np.inf, error)


def focal(nll, gamma):
    """f(nll) = q^gamma nll with q = 1 - exp(-nll), and f'."""
    q = -np.expm1(-nll)
    nll_over_q = np.where(nll == 0, 1, nll / np.where(q == 0, 1, q))
    decay = np.where(np.isposinf(nll), 0, np.exp(-nll) * nll_over_q)
    power = q**gamma
    return power * nll, power * (1 + gamma * decay)


def softmax_decisions(x, y, info, *, weight=None, gamma=0.0, epsilon=0.0, smoothing=0.0):
    """x [N, C], y [N] in [0, C); info: np.finfo of what the kernels compute in; beyond its range is inf."""
    rows = np.arange(len(y))
    below = x - x.max(1, keepdims=True)
    below = np.where(below < -info.max, -np.inf, below)
    e = np.exp(below)
    total = e.sum(1)
    log_total = np.log(total)
    nll = log_total - below[rows, y]
    value, slope = focal(nll, gamma)
    if epsilon:  # poly-1
        value, slope = value - epsilon * np.expm1(-nll), slope + epsilon * np.exp(-nll)
    w = np.ones(x.shape[1], LONG) if weight is None else weight
    p = e / total[:, None]
    onehot = np.zeros_like(x)
    onehot[rows, y] = 1
    loss = w[y] * value
    derivative = (w[y] * slope)[:, None] * (p - onehot)
    with_slope = np.abs(w[y]) * (1 + gamma + abs(epsilon))
    error = np.abs(w[y]) * (1 + abs(epsilon) + np.where(np.isfinite(nll), nll, 1))
    if smoothing:
        share = LONG(smoothing) / x.shape[1]
        loss = (1 - LONG(smoothing)) * loss + share * (w * (log_total[:, None] - below)).sum(1)
        derivative = (1 - LONG(smoothing)) * derivative + share * (w.sum() * p - w)
        distance = (
            np.where(np.isfinite(below), np.abs(below), 1) + np.where(np.isfinite(log_total), log_total, 1)[:, None]
        )
        sum_of_distances = (np.abs(w) * (distance + 1)).sum(1)
        # The kernels add before they multiply, as F.cross_entropy does.
        error = error + np.where(sum_of_distances > 0.99 * info.max, np.inf, share * sum_of_distances)
        with_slope = with_slope + share * np.abs(w).sum()
    unit = 16 * LONG(info.eps)
    # Sums over many classes round with their number.
    unit = unit * max(1, x.shape[1] / 512)
    return Decisions(loss, derivative, unit * error, unit * (with_slope[:, None] + np.abs(derivative)), -np.expm1(-nll))


def asymmetric_decisions(x, t, info, *, alpha=-1.0, gamma_positive, gamma_negative, margin):
    """x [N], t [N] in [0, 1], alpha a number or [N]; a soft target has a share of both losses."""
    e = np.exp(-np.abs(x))
    p, q = np.where(x >= 0, 1, e) / (1 + e), np.where(x >= 0, e, 1) / (1 + e)
    p, q = np.where(np.isnan(x), x, p), np.where(np.isnan(x), x, q)
    unit = 16 * LONG(info.eps)
    one, slope = focal(np.maximum(-x, 0) + np.log1p(e), gamma_positive)
    of_one = -slope * q
    size = 1 + np.where(np.isfinite(x), np.abs(x), 1)
    if margin:
        margin = LONG(info.dtype.type(margin))
        shifted, discarded = p - margin, p <= margin
        zero, slope = focal(np.where(discarded, 0, -np.log(q + margin)), gamma_negative)
        zero, of_zero = np.where(discarded, 0, zero), np.where(discarded, 0, slope * p * q / (q + margin))
        # p - margin has lost digits; at the margin itself rounding decides.
        lost = np.where(np.abs(shifted) <= 8 * unit, np.inf, (p + margin) / np.where(shifted == 0, 1, np.abs(shifted)))
        lost = np.where(discarded & np.isfinite(lost), 0, lost)
        steep = np.where(discarded, 0, np.abs(zero) + np.abs(of_zero))
        zero_error, of_zero_error = lost * steep, lost * steep
        at = np.isinf(lost)
        zero_error, of_zero_error = np.where(at, 1, zero_error), np.where(at, np.inf, of_zero_error)
    else:
        zero, slope = focal(np.maximum(x, 0) + np.log1p(e), gamma_negative)
        of_zero, zero_error, of_zero_error = slope * p, 0, 0
    weighted = np.all(np.asarray(alpha) >= 0)
    of_positive, of_negative = (alpha, 1 - alpha) if weighted else (1, 1)
    # A label without a share in a term has nothing of it; alpha is a factor like any other.
    rest = of_negative * (1 - t)
    times = lambda share, part: np.where(share == 0, 0, share * part)  # noqa: E731
    gamma = max(gamma_positive, gamma_negative)
    return Decisions(
        times(t, of_positive * one) + times(1 - t, of_negative * zero),
        (times(t, of_positive * of_one) + times(1 - t, of_negative * of_zero))[:, None],
        unit * (1 + gamma) * (size + times(rest, zero_error)),
        unit * (1 + gamma) * (1 + times(rest, of_zero_error))[:, None],
        p,
    )


def sigmoid_decisions(x, t, info, *, alpha=-1.0, gamma=0.0):
    """x [N], t [N] in [0, 1]."""
    hard = (t == 0) | (t == 1)
    e = np.exp(-np.abs(x))
    p = np.where(x >= 0, 1, e) / (1 + e)
    p = np.where(np.isnan(x), x, p)
    softplus = np.maximum(x, 0) + np.log1p(e)
    nll = np.where(t == 1, np.maximum(-x, 0) + np.log1p(e), softplus)
    value, slope = focal(nll, gamma)
    derivative = slope * np.where(t == 1, -(1 - p), p)
    tiny = np.where(x >= 0, e, 1) / (1 + e)  # 1 - p, without cancellation
    derivative = np.where(hard & (t == 1), -slope * tiny, derivative)
    norm = np.where(t == 1, tiny, p)
    if not hard.all():
        bce = softplus - x * t
        q = p * (1 - t) + (1 - p) * t
        soft_value = q**gamma * bce
        soft_derivative = q**gamma * (p - t) + (
            gamma * q ** (gamma - 1) * (1 - 2 * t) * p * (1 - p) * bce if gamma else 0
        )
        value = np.where(hard, value, soft_value)
        derivative = np.where(hard, derivative, soft_derivative)
        norm = np.where(hard, norm, np.abs(p - t))
        nll = np.where(hard, nll, bce)
    factor = alpha * t + (1 - alpha) * (1 - t) if np.all(np.asarray(alpha) >= 0) else np.ones_like(x)
    unit = 16 * LONG(info.eps)
    # The cross entropy of a soft target is a difference of numbers of the size of x.
    size = 1 + np.where(np.isfinite(nll), np.abs(nll), 1) + np.where(np.isfinite(x) & ~hard, np.abs(x), 0)
    return Decisions(
        factor * value,
        (factor * derivative)[:, None],
        unit * factor * size * (1 + gamma),
        unit * (factor * (1 + gamma) * np.where(hard, 1, size))[:, None],
        norm,
    )


def bins_of(norm, bins):
    scaled = np.where(np.isnan(norm), 1, norm) * bins
    return np.minimum(np.floor(scaled).astype(np.int64), bins - 1)


def on_an_edge(norm, bins, info):
    """Whether rounding may put a gradient norm into the next bin."""
    scaled = np.where(np.isnan(norm), 1, norm) * bins
    edge = np.round(scaled)
    return (np.abs(scaled - edge) <= 16 * LONG(info.eps) * bins) & (edge >= 1) & (edge <= bins - 1)


def ghm_weights(
    norm, bins, normalizer, momentum=0.0, bias_correction=True, training=True, histogram=None, updates=None
):
    """(weight of each decision [N], its relative error, histogram and updates after the call)."""
    index = bins_of(norm, bins)
    counts = np.bincount(index, minlength=bins)
    filled = counts > 0
    divisor = counts.astype(LONG)
    if momentum > 0:
        if training:
            histogram = np.where(filled, momentum * histogram + (1 - momentum) * counts, histogram)
            updates = updates + filled
        correction = 1 - LONG(momentum) ** updates if bias_correction else 1
        divisor = np.where(updates > 0, histogram / np.where(updates > 0, correction, 1), divisor)
    n = filled.sum() if normalizer == "nonempty" else bins
    beta = np.where(filled, counts.sum() / (n * np.where(filled, divisor, 1)), 0)
    # 1 - m^t loses digits of m, and all is in float64.
    return beta[index], 4 * np.finfo(np.float64).eps / (1 - LONG(momentum)), histogram, updates
