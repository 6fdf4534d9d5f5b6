"""What the commands show: tables of figures, and progress."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table


def figure_table(*columns: str) -> Table:
    """A table without lines: names on the left, figures on the right of their columns."""
    table = Table(box=None, header_style="bold", pad_edge=False, caption_justify="left")
    for column in columns:
        named = column in ("photograph", "method")
        table.add_column(column, justify="left" if named else "right", overflow="fold")
    return table


def stage_progress() -> Progress:
    """A bar for each stage on stderr, gone at the end."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, console=Console(stderr=True), transient=True)
