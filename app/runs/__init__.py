"""Runs as the server sees them: started, queued, limited, and how they stand. Free of Streamlit."""
