"""What an energy is, and what is asked of energies, data and settings."""
