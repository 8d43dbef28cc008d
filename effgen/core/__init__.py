"""What all four methods share: nothing here depends on a method."""
