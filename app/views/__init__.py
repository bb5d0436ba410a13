"""The parts of pages: head, sidebar, controls, forms."""
