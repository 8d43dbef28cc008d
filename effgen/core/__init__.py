"""What all four methods share: nothing here knows a method."""
