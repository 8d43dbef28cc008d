"""Which reason a failed step is given."""

import jax.numpy as jnp
import pytest

import effgen as eg
from effgen.core.contract.checks import result_code


def code(result):
    return int(result_code({"result": result}))


@pytest.mark.parametrize(
    ("loss", "reported", "said"),
    [
        (1.0, "successful", "successful"),
        (jnp.nan, "successful", "nonfinite"),
        (jnp.nan, "weights_collapsed", "nonfinite"),
        (1.0, "weights_collapsed", "weights_collapsed"),
        (jnp.inf, "data_outside", "data_outside"),
        (jnp.nan, "times_out_of_order", "times_out_of_order"),
    ],
)
def test_a_fault_of_the_batch_explains_a_loss_that_is_not_finite(loss, reported, said):
    metrics = {"loss": jnp.asarray(loss), "result": getattr(eg.RESULTS, reported)}
    assert int(result_code(metrics)) == code(getattr(eg.RESULTS, said))
