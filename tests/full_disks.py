"""A disk that is full for the writer of one run, and has room again."""

from modalscape.engine.store.writer import RunWriter


def refuse(writer: RunWriter) -> None:
    """Make the disk full for `writer`: the file may not grow, and what it holds is in use."""
    (pages,) = writer._db.execute("PRAGMA page_count").fetchone()
    writer._db.execute(f"PRAGMA max_page_count={pages}")


def relent(writer: RunWriter) -> None:
    """Give the disk room again."""
    writer._db.execute("PRAGMA max_page_count=1000000")
