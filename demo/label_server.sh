#!/bin/sh
# The start script of demo/Dockerfile. It serves the named models, which are packs in /models, for the studies in /studies.
set -eu
if [ $# -eq 0 ]; then
    echo "give the names of one or more packs in /models, such as: $(cd /models && echo *)" >&2
    exit 2
fi
mkdir -p apps/monaibundle/model  # Label's download has no such folder
names=
for name in "$@"; do
    # Training writes into the pack, and /models may be read-only.
    cp -r "/models/$name" "apps/monaibundle/model/$name"
    names="$names${names:+,}$name"
done
# In a container all addresses are the container's own; docker's -p says who reaches them.
exec monailabel start_server --app apps/monaibundle --studies "${STUDIES:-/studies}" \
    --conf models "$names" --conf zoo_source local --conf sam2 false \
    --host 0.0.0.0 --port 8000 --uvicorn_app common.label_guard:app
