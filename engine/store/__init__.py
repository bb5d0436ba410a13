"""The files of a run, as engine and dashboard both see them: records, commands, locks, archives. Free of torch."""
