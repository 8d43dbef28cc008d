"""The demonstration: every trainer on real data, in minutes, on two cores."""
