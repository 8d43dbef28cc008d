# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # From a pandas frame to a forecast
#
# The data are monthly carbon dioxide at Mauna Loa, with the gaps of the record. We
# state what is known of it as a sum of parts, and fit these by their exact evidence. We
# look at each part, and check the model by its one-step-ahead predictions. Then we
# compare it with another model on held-out years, and forecast on the frame's own
# index.

# %%
import os
import tempfile
from pathlib import Path

import jax
import numpy as np
import pandas as pd
from statsmodels.datasets import co2

from effgen import neural_sde as ns


figures = Path(os.environ.get("EFFGEN_FIGURES", tempfile.mkdtemp()))
frame = co2.load_pandas().data.resample("MS").mean().loc["1958":"1978"]
frame.index.name = "month"
past, future = frame.loc[:"1974"], frame.loc["1975":]
print(f"{len(past)} months, {int(past['co2'].isna().sum())} of them missing")

# %% [markdown]
# ## Parts, fitted
#
# A trend, and a season of a year with two harmonics. Time is counted in days, so
# periods are too. `fit_linear` gives each parameter with its standard error.

# %%
year = 365.25
parts = ns.trend() + ns.season(year, 2)
model = ns.structural(parts, past.index, past, unit="D")
fitted = ns.fit_linear(model, past.index, past, unit="D")
pd.DataFrame(
    {
        "value": {k: float(np.squeeze(v)) for k, v in fitted.parameters.items()},
        "error": {k: float(np.squeeze(v)) for k, v in fitted.standard_errors.items()},
    }
)

# %% [markdown]
# ## The parts apart

# %%
posterior = ns.posterior(fitted.model, past.index, past, unit="D")
components = posterior.components()
figure = components.plot()
for panel in figure.axes:
    panel.set_ylabel("CO2, ppm")
figure.savefig(figures / "sde-components.png", dpi=120)
figure

# %% [markdown]
# ## Is the model right?
#
# The residuals are each value less its prediction from the values before, in standard
# deviations. If the model is right, they are standard normal and independent.

# %%
predictions = posterior.predictions()
figure = predictions.plot()
figure.savefig(figures / "sde-residuals.png", dpi=120)
figure

# %% [markdown]
# ## Is another one better?
#
# The same without a season, fitted to the same years; both are scored on the years
# after.

# %%
plain = ns.structural(ns.trend(), past.index, past, unit="D")
plain = ns.fit_linear(plain, past.index, past, unit="D").model
compared = ns.compare(
    {"trend + season": fitted.model, "trend": plain},
    frame.index,
    frame,
    since=future.index[0],
    unit="D",
)
compared.to_pandas()

# %% [markdown]
# ## Four years ahead

# %%
bands = posterior.forecast(future.index, key=jax.random.key(0))
table = bands.to_pandas()
table.head()

# %%
figure = bands.plot()
panel = figure.axes[0]
panel.plot(future.index, future["co2"], "k.", markersize=3, label="measured")
panel.set(ylabel="CO2, ppm")
panel.legend(loc="upper left")
figure.savefig(figures / "sde-forecast.png", dpi=120)
figure

# %%
inside = (future["co2"] > table["5%"]) & (future["co2"] < table["95%"])
print(f"{100 * inside.mean():.0f} % of four years lie within the band of 90 %")
print("the index is the frame's own:", table.index.equals(future.index))
