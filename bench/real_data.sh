#!/usr/bin/env bash
# Trains on small real sets by the tables as they lie there, and predicts real vendor slides.
# usage: bench/real_data.sh DATA OUT     (DATA holds pathology_atlas, xray_kermany, histo_osteosarcoma, vendor_wsi)
set -uo pipefail
data=$1 out=$2
slides="$data/pathology_atlas/slides_5x/labels.csv"
slide_view="--view.spacing-um 2.0 --view.patch-px 128 --view.glimpse-spacing-um 16 --view.assume-spacing-um 2.0"
common="--encoder small --train.batch-size 2"

run() { # name, method options…
  local name=$1; shift
  echo "== $name"
  foveate train "$@" --out "$out/$name" >"$out/$name.txt" 2>"$out/$name.err"
  echo "exit $?"; cat "$out/$name.txt"
}

mkdir -p "$out"
for method in glimpse downsampled; do
  run "stain-$method" "$slides" --label stain_class --method $method --folds 3 --epochs 15 $common $slide_view
  run "malignant-$method" "$slides" --label label --classes malignant,non_neoplastic --method $method \
    --folds 3 --epochs 20 $common $slide_view
  run "xray-$method" "$data/xray_kermany/labels.csv" --label label --method $method --folds 4 --epochs 20 $common \
    --view.fit 512x512 --view.patch-px 128 --view.glimpse-px 128
  run "osteosarcoma-$method" "$data/histo_osteosarcoma/labels.csv" --label label --patient slide --method $method \
    --folds 3 --epochs 20 $common --view.patch-px 128 --view.glimpse-px 256
done
foveate predict "$out/malignant-glimpse" "$data/pathology_atlas/giga" "$data/vendor_wsi/aperio" "$data/vendor_wsi/hamamatsu" \
  --out "$out/vendor"
