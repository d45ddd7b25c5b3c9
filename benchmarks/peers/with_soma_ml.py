"""tiledbsoma-ml 0.1.0. It gives every epoch the same order; its shuffle is otherwise as asked."""

import tiledbsoma
from measure import Job, Minibatches, measure
from tiledbsoma_ml import ExperimentDataset


def minibatches(job: Job) -> Minibatches:
    with (
        tiledbsoma.Experiment.open(job["path"]) as experiment,
        experiment.axis_query(measurement_name="RNA") as query,
    ):
        dataset = ExperimentDataset(
            query,
            layer_name="data",
            obs_column_names=["label"],
            batch_size=job["batch_size"],
            io_batch_size=job["window_cells"],
            shuffle_chunk_size=job["block_cells"],
            return_sparse_X=not job["dense"],
            seed=0,
        )
        while True:
            for counts, obs in dataset:
                yield counts, obs["label"].cat.codes.to_numpy()


if __name__ == "__main__":
    measure(minibatches)
