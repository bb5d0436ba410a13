"""The training engine; this file stays empty of imports, so that the store can be read without torch."""
