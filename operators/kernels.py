"""The numbers: window statistics, EWMA and z-score of one entity and field, compiled by numba.

Only IEEE additions, multiplications, divisions and square roots, in one fixed order and without
fastmath: the same events give the same bits on every machine. Sources of the formulas:

- mean and spread: Welford's update on values shifted by the window's first value, so that an offset
  of 1e9 costs nothing; panes are joined by Chan, Golub and LeVeque's rule (1979).
- sum: Neumaier's compensated sum (1974).
- EW family: West's weighted update (1979), the mean carried as an unevaluated pair of floats. With
  `P = W² − Σw²` updated as `P·d² + 2·W·d`, the unbiased variance is `S·W/P` without cancellation.
"""

from __future__ import annotations

from decimal import Decimal, localcontext

import numpy as np
from numba import njit
from numpy.typing import NDArray

# Columns of a pane: what one entity and field has gathered within one slide of a window.
COUNT, FIRST, SHIFTED_MEAN, SPREAD, SUM, SUM_LOW, LOWEST, HIGHEST = range(8)
PANE = 8
# Columns of the EW state of one entity and field.
WEIGHT, PAIRS, MEAN, MEAN_LOW, EW_SPREAD, LAST, DELTA, PRIOR_NUM, PRIOR_DEN = range(9)
EW = 9
STATISTICS_COUNT = 11
FORGET_HALFLIVES = 400.0
"""Weights of 2^-400 and less count as zero, well before squares of them leave float64's range."""


def _powers() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """2^-(j/64), each rounded once from 40 digits, and 2^-n: no libm, so no machine-dependent bit."""
    with localcontext() as context:
        context.prec = 40
        fine = [float(Decimal(2) ** (Decimal(-j) / 64)) for j in range(64)]
    return np.array(fine), np.ldexp(1.0, -np.arange(int(FORGET_HALFLIVES) + 1))


_FINE, _WHOLE = _powers()
_LN2 = 0.6931471805599453


@njit(inline="always")
def decay(elapsed_us, halflife_us):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """2^-(elapsed/halflife), to about one unit in the last place; 0 from 400 halflives on."""
    halflives = elapsed_us / halflife_us
    if halflives >= FORGET_HALFLIVES:
        return 0.0
    steps = halflives * 64.0
    step = int(steps)
    z = -(steps - step) / 64.0 * _LN2
    series = 1.0 + z * (1.0 + z * (0.5 + z * (1 / 6 + z * (1 / 24 + z * (1 / 120 + z * (1 / 720))))))
    return _FINE[step & 63] * _WHOLE[step >> 6] * series


@njit(inline="always")
def ew_update(s, x, elapsed_us, halflife_us):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Take one value into the EW state `s` (float64 (9,))."""
    weight = s[WEIGHT]
    s[LAST] = x
    if weight == 0.0:
        s[WEIGHT] = 1.0
        s[MEAN] = x
        return
    factor = decay(elapsed_us, halflife_us)
    delta = (x - s[MEAN]) - s[MEAN_LOW]
    s[DELTA] = delta
    s[PRIOR_NUM] = s[EW_SPREAD] * weight
    s[PRIOR_DEN] = s[PAIRS]
    if factor == 0.0:
        s[WEIGHT] = 1.0
        s[PAIRS] = 0.0
        s[MEAN] = x
        s[MEAN_LOW] = 0.0
        s[EW_SPREAD] = 0.0
        return
    old = weight * factor
    s[PAIRS] = s[PAIRS] * factor * factor + 2.0 * old
    weight = old + 1.0
    s[WEIGHT] = weight
    step = delta / weight
    s[EW_SPREAD] = s[EW_SPREAD] * factor + delta * (delta - step)
    low = s[MEAN_LOW] + step
    high = s[MEAN] + low
    part = high - s[MEAN]
    s[MEAN_LOW] = (s[MEAN] - (high - part)) + (low - part)
    s[MEAN] = high


@njit(inline="always")
def pane_update(p, x):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Take one value into the pane `p` (float64 (8,))."""
    count = p[COUNT] + 1.0
    p[COUNT] = count
    if count == 1.0:
        p[FIRST] = x
        p[SHIFTED_MEAN] = 0.0
        p[SPREAD] = 0.0
        p[SUM] = x
        p[SUM_LOW] = 0.0
        p[LOWEST] = x
        p[HIGHEST] = x
        return
    shifted = x - p[FIRST]
    delta = shifted - p[SHIFTED_MEAN]
    step = delta / count
    p[SHIFTED_MEAN] += step
    p[SPREAD] += delta * (delta - step)
    total = p[SUM]
    added = total + x
    if abs(total) >= abs(x):
        p[SUM_LOW] += (total - added) + x
    else:
        p[SUM_LOW] += (x - added) + total
    p[SUM] = added
    if x < p[LOWEST]:
        p[LOWEST] = x
    if x > p[HIGHEST]:
        p[HIGHEST] = x


@njit(inline="always")
def pane_join(p, q):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Join the later pane `q`, not empty, into the earlier pane `p`."""
    if p[COUNT] == 0.0:
        for i in range(PANE):
            p[i] = q[i]
        return
    mine = p[COUNT]
    theirs = q[COUNT]
    count = mine + theirs
    delta = (q[FIRST] - p[FIRST]) + (q[SHIFTED_MEAN] - p[SHIFTED_MEAN])
    p[SHIFTED_MEAN] += delta * (theirs / count)
    p[SPREAD] += q[SPREAD] + delta * delta * (mine * theirs / count)
    p[COUNT] = count
    total = p[SUM]
    other = q[SUM]
    added = total + other
    if abs(total) >= abs(other):
        p[SUM_LOW] += ((total - added) + other) + q[SUM_LOW]
    else:
        p[SUM_LOW] += ((other - added) + total) + q[SUM_LOW]
    p[SUM] = added
    p[LOWEST] = min(p[LOWEST], q[LOWEST])
    p[HIGHEST] = max(p[HIGHEST], q[HIGHEST])


@njit(inline="always")
def _finite(x):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """A result that left float64's range is null, as one that is undefined."""
    return x if abs(x) <= 1.7976931348623157e308 else np.nan


@njit(inline="always")
def statistics(p, s, out):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Write the 11 statistics of a window `p` whose last event left the EW state `s` to `out`."""
    count = p[COUNT]
    out[0] = count
    if count == 0.0:
        for i in range(1, STATISTICS_COUNT):
            out[i] = np.nan
        return
    total = p[SUM] + p[SUM_LOW]
    out[1] = _finite(total)
    out[2] = _finite(total / count)
    out[3] = _finite(np.sqrt(p[SPREAD] / (count - 1.0))) if count > 1.0 else np.nan
    out[4] = p[LOWEST]
    out[5] = p[HIGHEST]
    out[6] = p[FIRST]
    out[7] = s[LAST]
    out[8] = _finite(s[MEAN] + s[MEAN_LOW])
    out[9] = _finite(np.sqrt(s[EW_SPREAD] * s[WEIGHT] / s[PAIRS])) if s[PAIRS] > 0.0 else np.nan
    if s[PRIOR_DEN] > 0.0 and s[PRIOR_NUM] > 0.0:
        out[10] = _finite(s[DELTA] / np.sqrt(s[PRIOR_NUM] / s[PRIOR_DEN]))
    else:
        out[10] = np.nan
