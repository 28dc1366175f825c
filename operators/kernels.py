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
def ew_update(ew, r, x, elapsed_us, halflife_us):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Take one value into the EW state `ew[r]`."""
    weight = ew[r, WEIGHT]
    ew[r, LAST] = x
    if weight == 0.0:
        ew[r, WEIGHT] = 1.0
        ew[r, MEAN] = x
        return
    factor = decay(elapsed_us, halflife_us)
    delta = (x - ew[r, MEAN]) - ew[r, MEAN_LOW]
    ew[r, DELTA] = delta
    ew[r, PRIOR_NUM] = ew[r, EW_SPREAD] * weight
    ew[r, PRIOR_DEN] = ew[r, PAIRS]
    if factor == 0.0:
        ew[r, WEIGHT] = 1.0
        ew[r, PAIRS] = 0.0
        ew[r, MEAN] = x
        ew[r, MEAN_LOW] = 0.0
        ew[r, EW_SPREAD] = 0.0
        return
    old = weight * factor
    ew[r, PAIRS] = ew[r, PAIRS] * factor * factor + 2.0 * old
    weight = old + 1.0
    ew[r, WEIGHT] = weight
    step = delta / weight
    ew[r, EW_SPREAD] = ew[r, EW_SPREAD] * factor + delta * (delta - step)
    low = ew[r, MEAN_LOW] + step
    high = ew[r, MEAN] + low
    part = high - ew[r, MEAN]
    ew[r, MEAN_LOW] = (ew[r, MEAN] - (high - part)) + (low - part)
    ew[r, MEAN] = high


@njit(inline="always")
def pane_update(panes, r, x):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Take one value into the pane `panes[r]`."""
    count = panes[r, COUNT] + 1.0
    panes[r, COUNT] = count
    if count == 1.0:
        panes[r, FIRST] = x
        panes[r, SHIFTED_MEAN] = 0.0
        panes[r, SPREAD] = 0.0
        panes[r, SUM] = x
        panes[r, SUM_LOW] = 0.0
        panes[r, LOWEST] = x
        panes[r, HIGHEST] = x
        return
    shifted = x - panes[r, FIRST]
    delta = shifted - panes[r, SHIFTED_MEAN]
    step = delta / count
    panes[r, SHIFTED_MEAN] += step
    panes[r, SPREAD] += delta * (delta - step)
    total = panes[r, SUM]
    added = total + x
    if abs(total) >= abs(x):
        panes[r, SUM_LOW] += (total - added) + x
    else:
        panes[r, SUM_LOW] += (x - added) + total
    panes[r, SUM] = added
    if x < panes[r, LOWEST]:
        panes[r, LOWEST] = x
    if x > panes[r, HIGHEST]:
        panes[r, HIGHEST] = x


@njit(inline="always")
def pane_join(window, f, panes, r):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Join the later pane `panes[r]`, not empty, into the earlier `window[f]`."""
    if window[f, COUNT] == 0.0:
        for i in range(PANE):
            window[f, i] = panes[r, i]
        return
    mine = window[f, COUNT]
    theirs = panes[r, COUNT]
    count = mine + theirs
    delta = (panes[r, FIRST] - window[f, FIRST]) + (panes[r, SHIFTED_MEAN] - window[f, SHIFTED_MEAN])
    window[f, SHIFTED_MEAN] += delta * (theirs / count)
    window[f, SPREAD] += panes[r, SPREAD] + delta * delta * (mine * theirs / count)
    window[f, COUNT] = count
    total = window[f, SUM]
    other = panes[r, SUM]
    added = total + other
    if abs(total) >= abs(other):
        window[f, SUM_LOW] += ((total - added) + other) + panes[r, SUM_LOW]
    else:
        window[f, SUM_LOW] += ((other - added) + total) + panes[r, SUM_LOW]
    window[f, SUM] = added
    window[f, LOWEST] = min(window[f, LOWEST], panes[r, LOWEST])
    window[f, HIGHEST] = max(window[f, HIGHEST], panes[r, HIGHEST])


@njit(inline="always")
def _finite(x):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """A result that left float64's range is null, as one that is undefined."""
    return x if abs(x) <= 1.7976931348623157e308 else np.nan


@njit(inline="always")
def statistics(panes, r, ew, s, out, row, at):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Write the 11 statistics of the window `panes[r]`, whose last event left the EW state `ew[s]`, to `out[row, at:]`."""
    count = panes[r, COUNT]
    out[row, at] = count
    if count == 0.0:
        for i in range(1, STATISTICS_COUNT):
            out[row, at + i] = np.nan
        return
    total = panes[r, SUM] + panes[r, SUM_LOW]
    out[row, at + 1] = _finite(total)
    out[row, at + 2] = _finite(total / count)
    out[row, at + 3] = _finite(np.sqrt(panes[r, SPREAD] / (count - 1.0))) if count > 1.0 else np.nan
    out[row, at + 4] = panes[r, LOWEST]
    out[row, at + 5] = panes[r, HIGHEST]
    out[row, at + 6] = panes[r, FIRST]
    out[row, at + 7] = ew[s, LAST]
    out[row, at + 8] = _finite(ew[s, MEAN] + ew[s, MEAN_LOW])
    out[row, at + 9] = _finite(np.sqrt(ew[s, EW_SPREAD] * ew[s, WEIGHT] / ew[s, PAIRS])) if ew[s, PAIRS] > 0.0 else np.nan
    if ew[s, PRIOR_DEN] > 0.0 and ew[s, PRIOR_NUM] > 0.0:
        out[row, at + 10] = _finite(ew[s, DELTA] / np.sqrt(ew[s, PRIOR_NUM] / ew[s, PRIOR_DEN]))
    else:
        out[row, at + 10] = np.nan
