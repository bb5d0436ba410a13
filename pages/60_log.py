"""Log: everything that happened to the run, and everything it left, to read and to take away."""

import streamlit as st

from modalscape.app.views import log, shell

TITLE = "Log"
ICON = ":material/receipt_long:"

run = shell.page(TITLE, "What happened, with what settings, and every record by its default figure.")

events, records, configuration, export = st.tabs(["Events", "Records", "Configuration", "Export"], key="log-tabs")
with events:
    log.events(run)
with records:
    log.records(run)
with configuration:
    log.configuration(run)
with export:
    log.export(run)
