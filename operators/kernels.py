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
from numpy.typing import NDArray

from operators.compiled import piece

# Every function takes a line of floats as (floats, e, at): it works on floats[e, at], floats[e, at + 1] …

# Places in a pane: what one entity and field has gathered within one slide of a window.
COUNT, FIRST, SHIFTED_MEAN, SPREAD, SUM, SUM_LOW, LOWEST, HIGHEST = range(8)
PANE = 8
# Places in the EW state of one entity and field.
WEIGHT, PAIRS, MEAN, MEAN_LOW, EW_SPREAD, LAST, DELTA, PRIOR_NUM, PRIOR_DEN = range(9)
EW = 9
EW_LASTING = 5
"""The first of them carry over from one event to the next; the others are of the last event alone."""
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
_LARGEST = np.finfo(np.float64).max


@piece
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


@piece
def _ew_restart(floats, e, at, x):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    floats[e, at + WEIGHT] = 1.0
    floats[e, at + PAIRS] = 0.0
    floats[e, at + MEAN] = x
    floats[e, at + MEAN_LOW] = 0.0
    floats[e, at + EW_SPREAD] = 0.0


@piece
def ew_update(floats, e, at, x, elapsed_us, halflife_us):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Take one value into an EW state; a state that leaves float64's range begins anew with the value."""
    weight = floats[e, at + WEIGHT]
    floats[e, at + LAST] = x
    if weight == 0.0:
        floats[e, at + WEIGHT] = 1.0
        floats[e, at + MEAN] = x
        return
    factor = decay(elapsed_us, halflife_us)
    mean = floats[e, at + MEAN]
    spread = floats[e, at + EW_SPREAD]
    pairs = floats[e, at + PAIRS]
    delta = (x - mean) - floats[e, at + MEAN_LOW]
    floats[e, at + DELTA] = delta
    floats[e, at + PRIOR_NUM] = spread * weight
    floats[e, at + PRIOR_DEN] = pairs
    if factor == 0.0:
        _ew_restart(floats, e, at, x)
        return
    old = weight * factor
    weight = old + 1.0
    step = delta / weight
    low = floats[e, at + MEAN_LOW] + step
    high = mean + low
    part = high - mean
    spread = spread * factor + delta * (delta - step)
    if not (abs(high) <= _LARGEST and spread <= _LARGEST):
        _ew_restart(floats, e, at, x)  # what is past float64's range would stay so for ever
        return
    floats[e, at + WEIGHT] = weight
    floats[e, at + PAIRS] = pairs * factor * factor + 2.0 * old
    floats[e, at + EW_SPREAD] = spread
    floats[e, at + MEAN_LOW] = (mean - (high - part)) + (low - part)
    floats[e, at + MEAN] = high


@piece
def pane_update(floats, e, at, x):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Take one value into a pane."""
    count = floats[e, at + COUNT] + 1.0
    floats[e, at + COUNT] = count
    if count == 1.0:
        floats[e, at + FIRST] = x
        floats[e, at + SHIFTED_MEAN] = 0.0
        floats[e, at + SPREAD] = 0.0
        floats[e, at + SUM] = x
        floats[e, at + SUM_LOW] = 0.0
        floats[e, at + LOWEST] = x
        floats[e, at + HIGHEST] = x
        return
    delta = (x - floats[e, at + FIRST]) - floats[e, at + SHIFTED_MEAN]
    step = delta / count
    floats[e, at + SHIFTED_MEAN] += step
    floats[e, at + SPREAD] += delta * (delta - step)
    total = floats[e, at + SUM]
    added = total + x
    if abs(total) >= abs(x):
        floats[e, at + SUM_LOW] += (total - added) + x
    else:
        floats[e, at + SUM_LOW] += (x - added) + total
    floats[e, at + SUM] = added
    floats[e, at + LOWEST] = min(x, floats[e, at + LOWEST])
    floats[e, at + HIGHEST] = max(x, floats[e, at + HIGHEST])


@piece
def pane_join(window, w, floats, e, at):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Join a later pane, not empty, into the earlier one at window[0, w]."""
    if window[0, w + COUNT] == 0.0:
        for i in range(PANE):
            window[0, w + i] = floats[e, at + i]
        return
    mine = window[0, w + COUNT]
    theirs = floats[e, at + COUNT]
    count = mine + theirs
    apart = floats[e, at + SHIFTED_MEAN] - window[0, w + SHIFTED_MEAN]
    delta = (floats[e, at + FIRST] - window[0, w + FIRST]) + apart
    window[0, w + SHIFTED_MEAN] += delta * (theirs / count)
    window[0, w + SPREAD] += floats[e, at + SPREAD] + delta * delta * (mine * theirs / count)
    window[0, w + COUNT] = count
    total = window[0, w + SUM]
    other = floats[e, at + SUM]
    added = total + other
    if abs(total) >= abs(other):
        window[0, w + SUM_LOW] += ((total - added) + other) + floats[e, at + SUM_LOW]
    else:
        window[0, w + SUM_LOW] += ((other - added) + total) + floats[e, at + SUM_LOW]
    window[0, w + SUM] = added
    window[0, w + LOWEST] = min(window[0, w + LOWEST], floats[e, at + LOWEST])
    window[0, w + HIGHEST] = max(window[0, w + HIGHEST], floats[e, at + HIGHEST])


@piece
def _finite(x):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """A result that left float64's range is null, as one that is undefined."""
    return x if abs(x) <= _LARGEST else np.nan


@piece
def window_statistics(panes, p, at, out, row, column):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Write count, sum, mean, std, min, max and first of the pane panes[p, at] to out[row, column]."""
    count = panes[p, at + COUNT]
    out[row, column] = count
    if count == 0.0:
        for i in range(1, STATISTICS_COUNT):
            out[row, column + i] = np.nan
        return
    total = panes[p, at + SUM] + panes[p, at + SUM_LOW]
    out[row, column + 1] = _finite(total)
    out[row, column + 2] = _finite(total / count)
    out[row, column + 3] = _finite(np.sqrt(panes[p, at + SPREAD] / (count - 1.0))) if count > 1.0 else np.nan
    out[row, column + 4] = panes[p, at + LOWEST]
    out[row, column + 5] = panes[p, at + HIGHEST]
    out[row, column + 6] = panes[p, at + FIRST]


@piece
def ew_statistics(floats, e, at, out, row):  # type: ignore[no-untyped-def]  # numba infers the types of compiled code
    """Write last, ewma, ewm_std and zscore of an EW state to out[row]."""
    out[row, 0] = floats[e, at + LAST]
    out[row, 1] = _finite(floats[e, at + MEAN] + floats[e, at + MEAN_LOW])
    out[row, 2] = np.nan
    out[row, 3] = np.nan
    if floats[e, at + PAIRS] > 0.0:
        out[row, 2] = _finite(np.sqrt(floats[e, at + EW_SPREAD] * floats[e, at + WEIGHT] / floats[e, at + PAIRS]))
    if floats[e, at + PRIOR_DEN] > 0.0 and floats[e, at + PRIOR_NUM] > 0.0:
        prior = np.sqrt(floats[e, at + PRIOR_NUM] / floats[e, at + PRIOR_DEN])
        out[row, 3] = _finite(floats[e, at + DELTA] / prior)
