"""Charts: what a page may ask to have drawn of a run, what is read for it, and under which names. Free of Streamlit."""
