"""What a user would otherwise run: the reference's way, and lightly's."""
