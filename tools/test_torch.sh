#!/usr/bin/env bash
# Installs a wheel and one version of torch into an environment of their own, and runs the tests there:
#
#     tools/test_torch.sh 2.10.0 dist/fastloss-*.whl [tests, else all that need nothing more; options of pytest]
#
# The environment is build/torch-VERSION. A CUDA build of torch is 5 to 7 GB: FASTLOSS_KEEP=0 removes it afterwards.
set -euo pipefail
cd "$(dirname "$0")/.."
torch=${1:?a version of torch}
wheel=${2:?a wheel}
shift 2
environment=build/torch-$torch
started=$SECONDS
if [ ! -x "$environment/bin/pytest" ]; then
  "${PYTHON:-python3}" -m venv "$environment"
  "$environment/bin/python" -m pip install --quiet --disable-pip-version-check --no-cache-dir torch=="$torch" numpy \
    expecttest hypothesis pytest pytest-xdist torch-abi-audit
fi
"$environment/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall "$wheel"
echo "torch $torch: installed in $((SECONDS - started)) s"
# test_lanes and "spills" compile the sources, without torch.
[ $# -gt 0 ] || set -- tests --ignore tests/emulated --ignore tests/ner --ignore tests/test_lanes.py -k "not spills"
# The script pytest: python -m pytest would find the sources' own fastloss first.
OMP_NUM_THREADS=1 "$environment/bin/pytest" -W ignore --numprocesses auto --dist worksteal "$@"
[ "${FASTLOSS_KEEP:-1}" = 1 ] || rm -rf "$environment"
