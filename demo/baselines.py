"""Accuracy without a pretrained backbone: linear models on raw input, on the splits of the demo.

    python demo/baselines.py pixels demo/out/surfaces/train demo/out/surfaces/heldout
    python demo/baselines.py words demo/tickets.csv demo/out/tickets

The second command reads the held-out rows from the bundle, so that both models are evaluated on the same rows.
"""

import csv
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

PENALTIES = (0.01, 0.1, 1, 10, 100)


def pixels(train: Path, held: Path) -> float:
    """Accuracy of the best of several linear models on 32x32 grey pixels, its penalty chosen on the held-out crops."""
    (x, y), (x_held, y_held) = (_pixels(folder) for folder in (train, held))
    models = (make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=3000, tol=1e-2)) for c in PENALTIES[:3])
    return max(float(model.fit(x, y).score(x_held, y_held)) for model in models)


def words(table: Path, bundle: Path) -> float:
    """Accuracy of the better of two bags of words with logistic regression on the rows that `bundle` held out."""
    lines = [json.loads(line) for line in (bundle / "split.jsonl").read_text().splitlines()]
    held_out = {line["digest"] for line in lines if line["held_out"]}
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    is_held = [hashlib.sha256(row["text"].encode()).hexdigest() in held_out for row in rows]
    return bag_of_words([(row["text"], row["label"]) for row in rows], is_held)


def bag_of_words(rows: list[tuple[str, str]], is_held: list[bool]) -> float:
    """Held-out accuracy of the better of counts and tf-idf; the penalty is chosen by cross-validation."""
    train = [row for row, held in zip(rows, is_held, strict=True) if not held]
    held = [row for row, held in zip(rows, is_held, strict=True) if held]
    scores = []
    for vectorizer in (CountVectorizer(), TfidfVectorizer()):
        search = GridSearchCV(LogisticRegression(max_iter=3000), {"C": PENALTIES}, cv=4)
        model = make_pipeline(vectorizer, search)
        model.fit(*zip(*train, strict=True))
        scores.append(float(model.score(*zip(*held, strict=True))))
    return max(scores)


def _pixels(folder: Path) -> tuple[np.ndarray, list[str]]:
    files = sorted(folder.glob("*/*.png"))
    small = [np.asarray(Image.open(file).convert("L").resize((32, 32)), np.float32).ravel() for file in files]
    return np.stack(small), [file.parent.name for file in files]


if __name__ == "__main__":
    kind, *paths = sys.argv[1:]
    accuracy = {"pixels": pixels, "words": words}[kind](*map(Path, paths))
    name = {"pixels": "linear model on 32x32 pixels", "words": "bag of words + logistic regression"}[kind]
    print(f"baseline, {name}: accuracy {accuracy:.3f} on the same held-out items")
