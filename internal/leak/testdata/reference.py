"""Prints the values of reference.json, against which trend_test.go holds Theil-Sen and Mann-Kendall.

    python3 -m venv v && v/bin/pip install numpy==2.4.6 scipy==1.17.1 pymannkendall==1.4.3
    v/bin/python internal/leak/testdata/reference.py > internal/leak/testdata/reference.json
"""
import json

import numpy as np
import pymannkendall
from scipy.stats import theilslopes

rng = np.random.default_rng(20261201)


def series():
    for n in (5, 12, 30, 60):
        t = np.arange(n) * 10.0
        white = rng.normal(size=n)
        ar = np.zeros(n)
        for i in range(1, n):
            ar[i] = 0.8 * ar[i - 1] + white[i]
        yield "noise", t, white
        yield "autocorrelated", t, ar
        yield "trend", t, 0.05 * t + white
        yield "trend and autocorrelated", t, 0.05 * t + ar
        yield "falls", t, -0.2 * t + white
        yield "ties", t, np.round(0.01 * t + white)
        yield "alternates", t, 0.03 * t + np.where(np.arange(n) % 2, 3.0, -3.0) + white / 10
        yield "step", t, np.where(t > t[-1] / 2, 5.0, 0.0) + white
        yield "times that differ", np.sort(np.round(rng.uniform(0, n, n))), ar


out = []
for name, t, y in series():
    y = np.round(y, 6)
    lags = max(1, len(y) // 3)
    s = theilslopes(y, t, 0.95)
    with np.errstate(all="ignore"):
        m = pymannkendall.hamed_rao_modification_test(y, alpha=0.05, lag=lags)
    out.append({
        "name": f"{name} {len(y)}", "t": t.tolist(), "y": y.tolist(), "lags": lags,
        "slope": s.slope, "low": s.low_slope, "high": s.high_slope,
        "per_step": m.slope, "z": None if np.isnan(m.z) else m.z,
    })
print(json.dumps(out, indent=None).replace('{"name"', '\n{"name"'))
