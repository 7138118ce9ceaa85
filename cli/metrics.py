"""Prints metrics for people to read, the same way in every verb."""

from zoo_cli.output import print_table, write

from zoo import Metrics

#: With more classes only the worst classes and the pairs that are most often confused are printed.
MAX_CLASSES = 20
#: If a line would have more characters, columns have numbers instead of names.
WIDE = 100


def floor_name(metrics: Metrics) -> str:
    """The name of the metric that `--fail-under` is compared with."""
    return "R²" if metrics.r2 is not None else "macro-F1" if metrics.micro_f1 is not None else "accuracy"


def summary(metrics: Metrics) -> str:
    """One line with the main metric and its interval first, and the number of items last."""
    if metrics.r2 is not None:
        return f"R² {metrics.r2:.4f}, MAE {metrics.mae:.4g}, RMSE {metrics.rmse:.4g}, n = {metrics.n}"
    assert metrics.accuracy_interval is not None
    low, high = metrics.accuracy_interval
    exact = f"{metrics.accuracy:.4f} (95 %: {low:.3f} to {high:.3f})"
    if metrics.micro_f1 is not None:
        several = f"macro-F1 {metrics.macro_f1:.4f}, micro-F1 {metrics.micro_f1:.4f}"
        return f"{several}, every label right {exact}, n = {metrics.n}"
    return f"accuracy {exact}, macro-F1 {metrics.macro_f1:.4f}, n = {metrics.n}"


def print_summary(metrics: Metrics, device: str) -> None:
    """Print a line for each metric, the main metric first."""
    where = f"n = {metrics.n}, on {device}"
    if metrics.r2 is not None:
        write(f"R²        {metrics.r2:.4f}  ({where})")
        write(f"MAE       {metrics.mae:.4g}")
        write(f"RMSE      {metrics.rmse:.4g}")
        return
    assert metrics.accuracy_interval is not None
    low, high = metrics.accuracy_interval
    interval = f"95 %: {low:.3f} to {high:.3f}"
    if metrics.micro_f1 is not None:
        write(f"macro-F1  {metrics.macro_f1:.4f}  ({where})")
        write(f"micro-F1  {metrics.micro_f1:.4f}")
        write(f"accuracy  {metrics.accuracy:.4f}  ({interval}; every label of an item right)")
    else:
        write(f"accuracy  {metrics.accuracy:.4f}  ({interval}, {where})")
        write(f"macro-F1  {metrics.macro_f1:.4f}")
    if metrics.top5 is not None:
        write(f"top 5     {metrics.top5:.4f}")
    if metrics.calibration_error is not None:
        points = 100 * metrics.calibration_error
        write(f"ECE       {metrics.calibration_error:.4f}  (confidence is off by {points:.2g} points on average)")
    if metrics.nll is not None:
        write(f"NLL       {metrics.nll:.4f}  (nats; 0 is certain and right)")


def print_labels(metrics: Metrics) -> None:
    """Print a row for each label; with many labels, only the worst."""
    if not metrics.per_class:
        return
    names = {"n": "N", "precision": "PRECISION", "recall": "RECALL", "f1": "F1", "average_precision": "AP"}
    kept = [name for name in names if name in next(iter(metrics.per_class.values()))]
    rows = [
        (label, *(f"{facts[name]:.0f}" if name == "n" else f"{facts[name]:.3f}" for name in kept))
        for label, facts in metrics.per_class.items()
    ]
    write()
    if len(rows) > MAX_CLASSES:
        worst = sorted(metrics.per_class, key=lambda label: metrics.per_class[label]["f1"])[:MAX_CLASSES]
        rows = [row for row in rows if row[0] in worst]
        write(f"the {MAX_CLASSES} of {len(metrics.per_class):,} classes with the lowest F1 (--json has all):")
    print_table(("CLASS", *(names[name] for name in kept)), rows)


def print_confusion(metrics: Metrics) -> None:
    """Print true classes in rows and predictions in columns; with many classes, the most often confused pairs."""
    if not metrics.confusion:
        return
    write()
    labels = list(metrics.per_class)
    if len(labels) > MAX_CLASSES:
        pairs = [
            (-count, labels[true], labels[said])
            for true, row in enumerate(metrics.confusion)
            for said, count in enumerate(row)
            if count and true != said
        ]
        rows = [(true, said, str(-count)) for count, true, said in sorted(pairs)[:MAX_CLASSES]]
        print_table(("MOST CONFUSED: TRUE", "PREDICTED", "N"), rows)
        return
    heads = labels
    if sum(len(label) + 2 for label in labels) + max(map(len, labels)) > WIDE:
        heads = [str(number) for number in range(1, len(labels) + 1)]
        labels = [f"{number} {label}" for number, label in zip(heads, labels, strict=True)]
    rows_of = zip(labels, metrics.confusion, strict=True)
    print_table(
        ("TRUE \\ PREDICTED", *heads), [(label, *(str(n) if n else "." for n in row)) for label, row in rows_of]
    )
