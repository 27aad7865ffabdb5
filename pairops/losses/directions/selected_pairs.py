"""Pair functions of InfoNCE: corrected by a bias, selected by what a guide says."""

from pairops.ops.terms.functions import Function, gated


def _shifted_value(s, scale, base, bias, offset):  # type: ignore[no-untyped-def]
    """scale · (s − base) + bias + offset"""
    return scale * (s - base) + (bias + offset)


def _shifted_slopes(s, scale, base, bias, offset):  # type: ignore[no-untyped-def]  # noqa: ARG001
    return scale, s - base, -scale, 1.0, 1.0


def _gated_from_value(s, t, scale, bar, base, bias, offset):  # type: ignore[no-untyped-def]
    """scale · (s − base) + bias + offset where t ≤ bar, else −∞"""
    return gated.value(s - base, t, scale, bar) + (bias + offset)


def _gated_from_slopes(s, t, scale, bar, base, bias, offset):  # type: ignore[no-untyped-def]  # noqa: ARG001
    by_s, by_t, by_scale, by_bar = gated.slopes(s - base, t, scale, bar)  # type: ignore[misc]
    selected = _selected_value(s, t, bar)  # type: ignore[no-untyped-call]
    return by_s, by_t, by_scale, by_bar, -by_s, selected, selected


def _selected_from_value(s, t, scale, bar, base, bias, offset):  # type: ignore[no-untyped-def]
    """scale · (s − base) + bias + offset where t ≤ bar, else 0"""
    return _selected_value(s, t, bar) * (scale * (s - base) + (bias + offset))  # type: ignore[no-untyped-call]


def _selected_from_slopes(s, t, scale, bar, base, bias, offset):  # type: ignore[no-untyped-def]  # noqa: ARG001
    selected = _selected_value(s, t, bar)  # type: ignore[no-untyped-call]
    by_s, flat = selected * scale, 0.0 * selected
    return by_s, flat, selected * (s - base), flat, -by_s, selected, selected


def _selected_value(s, t, bar):  # type: ignore[no-untyped-def]
    """1 where t ≤ bar, else 0"""
    return (t <= bar) + 0.0 * (s + t)  # NaN for NaN: a bare comparison would hide it


def _selected_slopes(s, t, bar):  # type: ignore[no-untyped-def]
    flat = 0.0 * _selected_value(s, t, bar)  # type: ignore[no-untyped-call]
    return flat, flat, flat


shifted = Function(_shifted_value, _shifted_slopes, "shifted", finite=True)
gated_from = Function(_gated_from_value, _gated_from_slopes, "gated_from")
selected_from = Function(_selected_from_value, _selected_from_slopes, "selected_from", finite=True)
selected = Function(_selected_value, _selected_slopes, "selected", finite=True)
