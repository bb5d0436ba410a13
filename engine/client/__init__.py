"""An engine seen from another process: start it, ask it, fork it, have it observed. Free of torch."""
