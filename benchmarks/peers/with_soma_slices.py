"""The rate at which TileDB-SOMA gives contiguous cells: a ceiling, not a loader. Nothing is shuffled or made a CSR."""

import numpy as np
import tiledbsoma
from measure import Job, Minibatches, measure

_BUFFER_BYTES = 2 << 20  # faster than the default of 1 GiB


def minibatches(job: Job) -> Minibatches:
    context = tiledbsoma.SOMATileDBContext(tiledb_config={"soma.init_buffer_bytes": _BUFFER_BYTES})
    with tiledbsoma.Experiment.open(job["path"], context=context) as experiment:
        label = experiment.obs.read(column_names=["label"]).concat().to_pandas()["label"]
        label_n = label.cat.codes.to_numpy()
        while True:
            for start in range(0, len(label_n), job["batch_size"]):
                stop = min(start + job["batch_size"], len(label_n))
                rows = experiment.ms["RNA"].X["data"].read((slice(start, stop - 1),), result_order="auto")
                yield [np.asarray(table["soma_data"]) for table in rows.tables()], label_n[start:stop]


if __name__ == "__main__":
    measure(minibatches)
