#!/usr/bin/env bash
# Builds the CPU library for AArch64 and runs tests with it under user-mode emulation, on torch's own AArch64 wheel:
#
#     tools/aarch64.sh PYTHON [arguments of pytest]      PYTHON: 3.11, has torch 2.13, setuptools and ninja
#
# Needs, from Debian: g++-aarch64-linux-gnu qemu-user-static debootstrap. Everything else comes from the registries into
# build/aarch64 (1 GB), the first time: an arm64 root to take libraries and Python from, and the packages. Emulation is
# about 20 times slower than the real thing; importing torch takes 15 s.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:?a Python that can build fastloss}
shift
folder=$PWD/build/aarch64
root=$folder/root
packages=$folder/packages
torch=2.10.0

if [ ! -e "$root/done" ]; then
  rm -rf "$root"
  # The second stage would run in the root; unpacked, the packages' libraries are all there.
  debootstrap --arch=arm64 --foreign --variant=minbase \
    --include=python3,python3-numpy,libgomp1,libstdc++6 bookworm "$root"
  for package in "$root"/var/cache/apt/archives/*.deb; do dpkg -x "$package" "$root"; done
  for library in blas lapack; do
    ln -sf $library/lib$library.so.3 "$root/usr/lib/aarch64-linux-gnu/lib$library.so.3"
  done
  touch "$root/done"
fi

if [ ! -e "$packages/done" ]; then
  rm -rf "$packages" && mkdir -p "$packages"
  "$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.11 --implementation cp \
    --platform manylinux_2_28_aarch64 --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 \
    --dest "$folder/wheels" torch==$torch filelock fsspec jinja2 markupsafe mpmath networkx sympy typing-extensions \
    hypothesis sortedcontainers iniconfig packaging pluggy pygments pytest
  for wheel in "$folder"/wheels/*.whl; do "$python" -m zipfile -e "$wheel" "$packages"; done
  touch "$packages/done"
fi

# torch's headers are the same for every architecture, Python's as good as.
rm -rf "$folder/fastloss"
CXX=aarch64-linux-gnu-g++ FASTLOSS_CUDA=0 LDFLAGS="-L$packages/torch/lib" \
  "$python" setup.py --quiet build_ext --build-lib "$folder"
mv "$folder"/fastloss/_C.*.so "$folder/fastloss/_C.cpython-311-aarch64-linux-gnu.so"
cp -r fastloss/*.py "$folder/fastloss/"

qemu-aarch64-static -cpu max -L "$root" -E OMP_NUM_THREADS=1 -E PYTHONPATH="$folder:$packages" \
  -E LD_LIBRARY_PATH="$root/usr/lib/aarch64-linux-gnu" -E PYTHONDONTWRITEBYTECODE=1 -E PYTHONSAFEPATH=1 \
  "$root/usr/bin/python3.11" -m pytest -p no:cacheprovider "$@"
