#!/usr/bin/env bash
# Copies what a run needs to resume to another folder, such as a bucket, or back:
#   bash runs/mirror.sh FROM TO
# It copies tokenizers, records and complete checkpoints, but no data, which every machine can
# recreate. A checkpoint's meta.json, with the hashes of its files, is copied last: an interrupted
# copy has none and is ignored.
set -euo pipefail
from=$1
to=$2
[ -d "$from" ] || exit 0
mkdir -p "$to"
from=$(cd "$from" && pwd)
to=$(cd "$to" && pwd)
cd "$from"

# Training may rename or remove files meanwhile; the next call copies what is missing.
{ find runs tokenizers -type d \( -name '.*' -o -name 'damaged_*' -o -name 'step_*' \) -prune \
    -o -type f ! -name '.*' -print 2>/dev/null || true; } | while read -r file; do
    cmp -s "$file" "$to/$file" && continue
    mkdir -p "$to/$(dirname "$file")"
    cp "$file" "$to/$file" || true
done
for step in runs/*/*/step_*; do
    if [ ! -f "$step/meta.json" ] || [ -f "$to/$step/meta.json" ]; then continue; fi
    mkdir -p "$to/$step"
    for file in "$step"/*; do
        [ "$file" = "$step/meta.json" ] || cp "$file" "$to/$step/" || continue 2
    done
    cp "$step/meta.json" "$to/$step/meta.json" || true
done
# Remove checkpoints that training has removed, unless the stage has no checkpoint here at all.
for step in "$to"/runs/*/*/step_*; do
    name=${step#"$to"/}
    [ -e "$step" ] && [ ! -e "$name" ] && compgen -G "$(dirname "$name")/step_*/meta.json" >/dev/null && rm -r "$step"
done
exit 0
