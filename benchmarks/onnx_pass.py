"""One pass of ONNX Runtime over images, from files to features.

    python benchmarks/onnx_pass.py MODEL DATA features.npz

Prints one line of JSON: the seconds, without importing and loading, and the number of images. The features are saved
with the files' names.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

from zoo import Zoo

if __name__ == "__main__":
    model, data, out = sys.argv[1:]
    files = sorted(Path(data).rglob("*.jpg"))
    session = Zoo().session(model, "cpu")
    # The first call loads what decoding needs.
    session.features(files[:2])
    began = time.perf_counter()
    features = session.features(files)
    seconds = time.perf_counter() - began
    np.savez(out, names=[path.relative_to(data).as_posix() for path in files], features=features)
    print(json.dumps({"seconds": seconds, "items": len(files)}))
