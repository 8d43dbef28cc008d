"""Measured records, small enough to be here: hares, lynxes, and a drug in blood."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float


_HARES = (
    *(30.0, 47.2, 70.2, 77.4, 36.3, 20.6, 18.1, 21.4, 22.0, 25.4, 27.1),
    *(40.3, 57.0, 76.6, 52.3, 19.5, 11.2, 7.6, 14.6, 16.2, 24.7),
)
_LYNXES = (
    *(4.0, 6.1, 9.8, 35.2, 59.4, 41.7, 19.0, 13.0, 8.3, 9.1, 7.4),
    *(8.0, 12.3, 19.5, 45.7, 51.1, 29.7, 15.8, 9.7, 10.1, 8.6),
)


def pelts() -> tuple[Float[np.ndarray, " years"], Float[np.ndarray, "years 2"]]:
    """Return the years 1900 to 1920, and the pelts of hares and lynxes in thousands.

    The Hudson's Bay Company took these pelts in. The literature reads them as the sizes
    of the populations.

    Returns:
        The years, `(21,)`, and the counts, `(21, 2)`: hares, then lynxes.

    Source:
        Elton and Nicholson (1942), as tabulated by Howard (2009).

    >>> years, counts = pelts()
    >>> counts[years == 1904].tolist()
    [[36.3, 59.4]]
    """
    years = 1900.0 + np.arange(len(_HARES))
    return years, np.stack([_HARES, _LYNXES], axis=1)


_LYNX = (
    "269 321 585 871 1475 2821 3928 5943 4950 2577 523 98 184 279 409 2285 2685 3409 "
    "1824 409 151 45 68 213 546 1033 2129 2536 957 361 377 225 360 731 1638 2725 2871 "
    "2119 684 299 236 245 552 1623 3311 6721 4254 687 255 473 358 784 1594 1676 2251 "
    "1426 756 299 201 229 469 736 2042 2811 4431 2511 389 73 39 49 59 188 377 1292 "
    "4031 3495 587 105 153 387 758 1307 3465 6991 6313 3794 1836 345 382 808 1388 2713 "
    "3800 3091 2985 3790 374 81 80 108 229 399 1132 2432 3574 2935 1537 529 485 662 "
    "1000 1590 2657 3396"
)


def lynx() -> Float[np.ndarray, " years"]:
    """Return the lynxes trapped on the Mackenzie River, each year from 1821 to 1934.

    Source:
        Elton and Nicholson (1942), and in R.

    >>> lynx().shape, lynx().max()
    ((114,), np.float64(6991.0))
    """
    return np.array(_LYNX.split(), float)


# Dose; hours; concentrations.
_THEOPHYLLINE = (
    (
        "4.02",
        "0 0.25 0.57 1.12 2.02 3.82 5.1 7.03 9.05 12.12 24.37",
        "0.74 2.84 6.57 10.5 9.66 8.58 8.36 7.47 6.89 5.94 3.28",
    ),
    (
        "4.4",
        "0 0.27 0.52 1 1.92 3.5 5.02 7.03 9 12 24.3",
        "0 1.72 7.91 8.31 8.33 6.85 6.08 5.4 4.55 3.01 0.9",
    ),
    (
        "4.53",
        "0 0.27 0.58 1.02 2.02 3.62 5.08 7.07 9 12.15 24.17",
        "0 4.4 6.9 8.2 7.8 7.5 6.2 5.3 4.9 3.7 1.05",
    ),
    (
        "4.4",
        "0 0.35 0.6 1.07 2.13 3.5 5.02 7.02 9.02 11.98 24.65",
        "0 1.89 4.6 8.6 8.38 7.54 6.88 5.78 5.33 4.19 1.15",
    ),
    (
        "5.86",
        "0 0.3 0.52 1 2.02 3.5 5.02 7.02 9.1 12 24.35",
        "0 2.02 5.63 11.4 9.33 8.74 7.56 7.09 5.9 4.37 1.57",
    ),
    (
        "4",
        "0 0.27 0.58 1.15 2.03 3.57 5 7 9.22 12.1 23.85",
        "0 1.29 3.08 6.44 6.32 5.53 4.94 4.02 3.46 2.78 0.92",
    ),
    (
        "4.95",
        "0 0.25 0.5 1.02 2.02 3.48 5 6.98 9 12.05 24.22",
        "0.15 0.85 2.35 5.02 6.58 7.09 6.66 5.25 4.39 3.53 1.15",
    ),
    (
        "4.53",
        "0 0.25 0.52 0.98 2.02 3.53 5.05 7.15 9.07 12.1 24.12",
        "0 3.05 3.05 7.31 7.56 6.59 5.88 4.73 4.57 3 1.25",
    ),
    (
        "3.1",
        "0 0.3 0.63 1.05 2.02 3.53 5.02 7.17 8.8 11.6 24.43",
        "0 7.37 9.03 7.14 6.33 5.66 5.67 4.24 4.11 3.16 1.12",
    ),
    (
        "5.5",
        "0 0.37 0.77 1.02 2.05 3.55 5.05 7.08 9.38 12.1 23.7",
        "0.24 2.89 5.22 6.41 7.83 10.21 9.18 8.02 7.14 5.68 2.42",
    ),
    (
        "4.92",
        "0 0.25 0.5 0.98 1.98 3.6 5.02 7.03 9.03 12.12 24.08",
        "0 4.86 7.24 8 6.81 5.87 5.22 4.45 3.62 2.69 0.86",
    ),
    (
        "5.3",
        "0 0.25 0.5 1 2 3.52 5.07 7.07 9.03 12.05 24.15",
        "0 1.25 3.96 7.82 9.72 9.75 8.57 6.59 6.11 4.57 1.17",
    ),
)


class Subject(NamedTuple):
    """A dose in mg per kg of weight, hours since it, and mg per liter in the blood."""

    dose: float
    hours: Float[np.ndarray, " samples"]
    concentrations: Float[np.ndarray, " samples"]


def theophylline() -> list[Subject]:
    """Return twelve subjects' blood levels after a dose of theophylline by mouth.

    Returns:
        The subjects, each with 11 samples over some 24 hours.

    Source:
        Upton, as tabulated by Boeckmann, Sheiner and Beal (1994), and in R.

    >>> subjects = theophylline()
    >>> len(subjects), subjects[0].dose, subjects[0].concentrations.max()
    (12, 4.02, np.float64(10.5))
    """
    found = []
    for parts in _THEOPHYLLINE:
        dose, hours, levels = (np.array(part.split(), float) for part in parts)
        found.append(Subject(float(dose[0]), hours, levels))
    return found
