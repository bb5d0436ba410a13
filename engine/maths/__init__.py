"""Pure functions, torch in, torch out: no view, no store."""
