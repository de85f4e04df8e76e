"""The error function on arrays: NumPy has none (W. J. Cody 1969, "Rational Chebyshev
approximations for the error function", Math. Comp. 23, tables II and III)."""

from minisft.backend.array import Array, array_module

# erf(x) = x * P(x^2) / Q(x^2) for |x| <= 0.46875, highest power first
SMALL_P = (1.85777706184603153e-1, 3.16112374387056560e0, 1.13864154151050156e2,
           3.77485237685302021e2, 3.20937758913846947e3)
SMALL_Q = (1.0, 2.36012909523441209e1, 2.44024637934444173e2, 1.28261652607737228e3,
           2.84423683343917062e3)
# erf(x) = 1 - exp(-x^2) * P(x) / Q(x) beyond; fitted for x <= 4, and within 1e-15 up to 6,
# where 1 - erf(x) is smaller than that
LARGE_P = (2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594e0,
           6.61191906371416295e1, 2.98635138197400131e2, 8.81952221241769090e2,
           1.71204761263407058e3, 2.05107837782607147e3, 1.23033935479799725e3)
LARGE_Q = (1.0, 1.57449261107098347e1, 1.17693950891312499e2, 5.37181101862009858e2,
           1.62138957456669019e3, 3.29079923573345963e3, 4.36261909014324716e3,
           3.43936767414372164e3, 1.23033935480374942e3)


def erf(x: Array) -> Array:
    """x (...) -> erf(x) (...), within 1e-15 in float64."""
    xp = array_module(x)
    a = xp.minimum(xp.abs(x), 6)
    square = xp.minimum(a, 0.46875) ** 2
    small = x * (_horner(SMALL_P, square) / _horner(SMALL_Q, square))
    large = xp.copysign(1 - xp.exp(-a * a) * (_horner(LARGE_P, a) / _horner(LARGE_Q, a)), x)
    return xp.where(a <= 0.46875, small, large)


def _horner(coefficients, x):
    value = coefficients[0]
    for c in coefficients[1:]:
        value = value * x + c
    return value
