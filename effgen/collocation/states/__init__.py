"""States in time: at the nodes of a mesh, simulated, and first guesses."""

from .integration import (
    integrate as integrate,
)
from .mesh import (
    aligned_edges as aligned_edges,
    uniform_edges as uniform_edges,
)
from .radau_points import (
    Radau as Radau,
    radau as radau,
)
from .simulation import (
    simulate as simulate,
)
from .solution import (
    Multipliers as Multipliers,
    Solution as Solution,
)
