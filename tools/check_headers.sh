#!/usr/bin/env bash
# Compiles every header of csrc alone: each is guarded, and includes what it uses. CUDA's where nvcc is.
set -euo pipefail
cd "$(dirname "$0")/.."

torch=$(dirname "$("${PYTHON:-python3}" -c 'import importlib.util; print(importlib.util.find_spec("torch").origin)')")
flags=(-std=c++20 -isystem "$torch/include" -DTORCH_TARGET_VERSION=0x020a000000000000)
failed=0
while read -r header; do
  grep -q '^#pragma once' "$header" || { echo "$header: has no #pragma once"; failed=1; }
  case $header in
    *.cuh | csrc/cuda/*)
      command -v nvcc >/dev/null || continue
      echo "#include \"$header\"" >"${TMPDIR:-/tmp}/fastloss_header.cu"
      nvcc "${flags[@]}" -I. --expt-relaxed-constexpr -ptx -arch=sm_80 -o /dev/null "${TMPDIR:-/tmp}/fastloss_header.cu" || failed=1
      ;;
    *)
      echo "#include \"$header\"" | "${CXX:-c++}" "${flags[@]}" -I. -fvisibility=hidden -Wall -Wno-psabi -fsyntax-only -x c++ - || failed=1
      ;;
  esac
done < <(git ls-files 'csrc/*.h' 'csrc/*.cuh')
exit $failed
