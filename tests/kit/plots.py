"""Cheaper plots in the children of tests."""

#: Pixels per inch of the plots that children draw: enough for a valid image, too few to read.
DPI = 60


def warm_up() -> None:
    """Load matplotlib for the children that are forked from this process, and let them draw small plots."""
    from zoo.evaluation import report_plots

    report_plots.load()
    report_plots.load = lambda: None
    report_plots.DPI = DPI
