from __future__ import annotations

import rankwright as rw


def test_x(tiny_experiment, tmp_path):
    import time

    t = time.time()
    r = rw.run(tiny_experiment, runs=tmp_path, quiet=False)
    print(time.time() - t)
    t = time.time()
    r = rw.run(tiny_experiment, runs=tmp_path, quiet=False)
    print(time.time() - t)
    for o in r.outcomes:
        print(o)
    import os

    os.system(
        f"find {tmp_path}/tiny {tmp_path}/.cache -type f; cat {tmp_path}/tiny/evaluate/table.md; cat {tmp_path}/tiny/mine/stage.json"
    )
    assert 0
