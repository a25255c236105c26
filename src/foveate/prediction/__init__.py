"""How trained models answer, and what that leaves on disk."""
