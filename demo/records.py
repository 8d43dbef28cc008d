"""A measured record, small enough to be here: hares and lynxes."""

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
