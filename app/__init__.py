"""The dashboard: reads what engines record and sends them commands; imports no torch."""
