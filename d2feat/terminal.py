"""What the commands show: tables of figures, and progress."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table


def figure_table(*columns: str, names: int = 1) -> Table:
    """A table without lines: the first `names` columns on the left, figures on the right of theirs."""
    table = Table(box=None, header_style="bold", pad_edge=False, caption_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < names else "right", overflow="fold")
    return table


def stage_progress() -> Progress:
    """A bar for each stage on stderr, gone at the end."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, console=Console(stderr=True), transient=True)
