#!/usr/bin/env bash
# The whole way on a synthetic atlas, or on a store of your own:
#   bash launch/demo.sh
#   bash launch/demo.sh STORE [--batch-key COLUMN] [--labels-key COLUMN] [--layer LAYER] [--epochs N]
#   bash launch/demo.sh --serve    also answers at the end, on a page of this machine, until Ctrl-C
# Results go to runs/demo-*; WORKERS sets the number of Ray Train workers (2).
set -euo pipefail

store="" batch_key="" labels_key="" layer="" epochs="" serve="" here=$PWD
while [ $# -gt 0 ]; do
    case $1 in
    --batch-key) batch_key=$2 && shift 2 ;;
    --labels-key) labels_key=$2 && shift 2 ;;
    --layer) layer=$2 && shift 2 ;;
    --epochs) epochs=$2 && shift 2 ;;
    --serve) serve=serve && shift ;;
    -*) echo "demo: unknown option $1; see the head of launch/demo.sh" >&2 && exit 2 ;;
    *) store=$(cd "$here" && realpath "$1") && shift ;;
    esac
done
extras=report
if [ -e "$store/__tiledb_group.tdb" ] || [ -d "$store/__group" ]; then extras=$extras,soma; fi # a TileDB-SOMA experiment
if [ -n "$serve" ]; then extras=$extras,serve; fi

# shellcheck source=launch/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
use_environment "$extras"

workers=${WORKERS:-2}
out=$PWD/runs/demo-$(date +%Y%m%d-%H%M%S)
mkdir -p "$out"
step() { printf '\n== %s\n' "$*"; }

if [ -z "$store" ]; then
    store=$out/atlas.zarr batch_key=batch labels_key=cell_type
    step "Simulate: 20,000 cells of 8 types in 4 batches, 2,000 genes, as AnnData Zarr"
    dist-scvi simulate "$store" --cells 20000 --genes 2000 --types 8 --batches 4 --processes 2
fi

step "Inspect"
dist-scvi inspect "$store" ${layer:+--layer "$layer"} ${batch_key:+--batch-key "$batch_key"} ${labels_key:+--labels-key "$labels_key"}

step "Pack: the same cells in a random order, in the smallest types, every chunk with a checksum"
dist-scvi pack "$store" "$out/packed.zarr" ${layer:+--layer "$layer"}
dist-scvi verify "$out/packed.zarr"

cat >"$out/run.yaml" <<YAML
run: $out/run
data:
  uri: $out/packed.zarr
  batch_key: ${batch_key:-null}
  labels_key: ${labels_key:-null}
train:
  max_epochs: ${epochs:-10}
  batch_size: 256
  lanes: 4
YAML

step "Train: SCVI on $workers Ray Train workers"
dist-scvi train "$out/run.yaml" --workers "$workers"

step "Minify: the posterior of every cell, on the same number of workers"
dist-scvi minify "$out/run" --workers "$workers"

genes=$(python - "$out/run/atlas" <<'PY'
import sys
import dist_scvi
print(",".join(dist_scvi.open_atlas(sys.argv[1]).var_names[:5]))
PY
)
by=${labels_key:-$batch_key}
step "Query: expression${by:+ and markers by $by}, from the minified atlas alone"
if [ -n "$by" ]; then
    dist-scvi query "$out/run/atlas" group-expression --genes "$genes" --by "$by"
    dist-scvi query "$out/run/atlas" markers --by "$by" --n-genes 2
else
    dist-scvi query "$out/run/atlas" expression --genes "$genes" | head -6
fi

step "Report"
python - "$out/run" <<'PY'
import statistics, sys
from pathlib import Path
from dist_scvi.metrics.metrics_file import read_metrics
rows = read_metrics(Path(sys.argv[1]))
held_out = [row["elbo"] for row in rows if row["kind"] == "validation"]
speed = statistics.median(row["cells_per_s"] for row in rows if row["kind"] == "train")
memory = max(row.get("memory_mib", 0) for row in rows)
print(f"held-out elbo {held_out[0]:.1f} after the first epoch, {held_out[-1]:.1f} after the last (lower is better)")
print(f"{speed:.0f} cells/s over all workers, at most {memory:.0f} MiB in each")
PY
dist-scvi report "$out/run" --fast
cat <<END

  cells     $store
  packed    $out/packed.zarr   opens with anndata.read_zarr
  run       $out/run           config.yaml, metrics.jsonl, checkpoints/, model/
  atlas     $out/run/atlas     cells.zarr opens with anndata.read_zarr
  report    $out/run/report.html

Try next:
  export PATH=$VIRTUAL_ENV/bin:\$PATH
  dist-scvi query $out/run/atlas latent | head
  dist-scvi query $out/run/atlas expression --genes $genes --out expression.csv
  dist-scvi export $out/run/atlas atlas.h5ad --to h5ad
  dist-scvi resume $out/run train.max_epochs=20 --workers $workers
END
if [ -n "$serve" ]; then
    step "Serve: the atlas answers at the address below"
    exec dist-scvi serve "demo=$out/run/atlas"
fi
echo "  dist-scvi serve $out/run/atlas    # answers over HTTP, with a page (bash launch/demo.sh --serve)"
