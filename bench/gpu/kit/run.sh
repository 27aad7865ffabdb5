#!/usr/bin/env bash
# Installs the wheels beside this script, without an index, and runs a command with them: by default
# the first run on a GPU. From the root of the repository, on a machine with Python 3.12 and torch:
#
#     bash build/gpu-kit/run.sh
#     bash build/gpu-kit/run.sh python3 -m bench gpu --parts tests launch --pytest='-n 8'
set -euo pipefail
kit=$(cd "$(dirname "$0")" && pwd)
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
python3 -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$kit"/*.whl
# The installed pairops, which has its kernels, goes before that of the working tree.
export PYTHONPATH=$site:$PWD PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1
if [ $# -eq 0 ]; then
    # OUT: the folder that a lent machine sends back.
    set -- python3 -m bench gpu --first-run --output "${OUT:-bench/results}"
fi
"$@"
