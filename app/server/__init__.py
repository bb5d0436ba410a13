"""What the server answers, whom it answers, and the one live component."""
