"""Result rows (dicts from a store) as tables, figures and one self-contained page; never imports torch."""

from lotterykit.reports.ink import check_ready
from lotterykit.reports.page import write_report
from lotterykit.reports.tables import summary_rows, summary_table

__all__ = ["check_ready", "summary_rows", "summary_table", "write_report"]
